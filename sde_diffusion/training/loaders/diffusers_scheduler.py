"""The schedulers of diffusers in our words: the SDE, what the network is told and predicts, the bound on x₀."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.sdes import SDES
from sde_diffusion.training.loaders.descriptions import build, refuse, require_known

CHAINS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""Schedulers that sample DDPM's chain, with the same options and defaults for its betas."""

VE = "ScoreSdeVeScheduler"

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def read_diffusion(path: Path, scheduler: dict[str, Any], fourier: bool) -> dict[str, Any]:
    """Return our configuration of the SDE, the denoiser, and what goes with them."""
    name = scheduler.get("_class_name")
    require_known(path, "_class_name", name, [*CHAINS, VE])
    if fourier is not (name == VE):
        kind, told = ("fourier", "σ") if fourier else ("positional", "the index")
        reason = f"not supported with time_embedding_type={kind!r}, which has to be told {told}"
        raise refuse(path, "_class_name", name, reason)
    if name == VE:
        ends = {"sigma_min": scheduler.get("sigma_min", 0.01), "sigma_max": scheduler.get("sigma_max", 1348.0)}
        for key, value in ends.items():
            require_float(f"{path}: {key}", value, 0.0, open_low=True)
        label = {"name": "log_sigma", "log_sigma": {"scale": 0.5}}
        denoiser = {"prediction": "eps", "sigma_data": 0.0, "noise_label": label}
        return {"sde": {"name": "ve", "ve": {key: 2.0 * value for key, value in ends.items()}}, "denoiser": denoiser}
    if scheduler.get("rescale_betas_zero_snr"):
        raise refuse(path, "rescale_betas_zero_snr", True, "not supported; the last β is 1, where x₀ cannot be read")
    prediction = scheduler.get("prediction_type", "epsilon")
    require_known(path, "prediction_type", prediction, list(PREDICTIONS))
    chain = _chain(path, scheduler)
    build(path, SDES, "ddpm", **chain)
    discrete = {"num_train_steps": len(chain["betas"]) if "betas" in chain else chain["num_train_steps"]}
    label = times = {"name": "discrete", "discrete": discrete}
    variance = "beta" if str(scheduler.get("variance_type")).startswith("fixed_large") else "posterior"
    denoiser = {"prediction": PREDICTIONS[prediction], "sigma_data": 0.0, "noise_label": label}
    return {
        "sde": {"name": "ddpm", "ddpm": chain},
        "denoiser": {**denoiser, "thresholding": thresholding(path, scheduler)},
        "objective": {"name": "denoising", "denoising": {"times": times, "weighting": {"name": "simple"}}},
        "sampler": {"ancestral": {"variance": variance}},
    }


def _chain(path: Path, scheduler: dict[str, Any]) -> dict[str, Any]:
    """Return our options of the chain with their betas: by name where we have the schedule, else one by one."""
    betas = scheduler.get("trained_betas")
    if betas is not None:
        good = isinstance(betas, list) and len(betas) > 0 and all(isinstance(beta, float) for beta in betas)
        require(good, f"{path}: trained_betas", betas, "a list of numbers")
        return {"betas": tuple(betas)}
    number, schedule = scheduler.get("num_train_timesteps", 1000), scheduler.get("beta_schedule", "linear")
    first, last = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    require_int(f"{path}: num_train_timesteps", number, 1)
    require_float(f"{path}: beta_start", first, 0.0)
    require_float(f"{path}: beta_end", last, 0.0)
    require_known(path, "beta_schedule", schedule, ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
    if schedule == "linear":
        return {"schedule": "linear", "num_train_steps": number, "beta_first": first, "beta_last": last}
    if schedule == "squaredcos_cap_v2":
        return {"schedule": "cosine", "num_train_steps": number}
    if schedule == "scaled_linear":
        grid = torch.linspace(first**0.5, last**0.5, number, dtype=torch.float64) ** 2
    else:
        grid = torch.linspace(-6.0, 6.0, number, dtype=torch.float64).sigmoid() * (last - first) + first
    return {"betas": tuple(grid.tolist())}


def thresholding(path: Path, scheduler: dict[str, Any]) -> dict[str, Any]:
    """Return our ``denoiser.thresholding`` of a scheduler.

    ``thresholding`` goes before ``clip_sample``, which is on by default in the first two schedulers. The DDIM scheduler
    steps with ε as the network predicts it, whatever becomes of x₀; the others read x₀ alone.
    """
    keep = {"keep_eps": scheduler["_class_name"] == "DDIMScheduler"}
    if scheduler.get("thresholding"):
        percentile, largest = scheduler.get("dynamic_thresholding_ratio", 0.995), scheduler.get("sample_max_value", 1.0)
        require_float(f"{path}: dynamic_thresholding_ratio", percentile, 0.0, 1.0, open_low=True)
        require_float(f"{path}: sample_max_value", largest, 1.0)
        return {"name": "dynamic", "dynamic": {"percentile": percentile, "max_value": float(largest), **keep}}
    if not scheduler.get("clip_sample", scheduler["_class_name"] in ("DDPMScheduler", "DDIMScheduler")):
        return {"name": "none"}
    bound = scheduler.get("clip_sample_range", 1.0)
    require_float(f"{path}: clip_sample_range", bound, 0.0, open_low=True)
    return {"name": "static", "static": {"bound": float(bound), **keep}}
