"""The schedulers of diffusers in our words: the SDE, what the network is told and predicts, the bound on x₀.

A scheduler says two things: by which noise a network was trained, which is taken over or refused for what it is, and
how to draw samples, of which a line tells what is not taken over.

    chain  DDPM's betas, whatever solver goes with them; those on σ/α scale the state before the network sees it
    EDM    Karras' preconditioning with sigma_data on a VE SDE, the label ¼ log σ
    VE     the score SDE's, of pictures in [0, 1]: on x′ = 2x − 1, where we work, σ′ = 2σ
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sde_diffusion.chain import require_chain
from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.sdes import SDES
from sde_diffusion.training.loaders.descriptions import build, refuse, require_known

DDPM_BETAS, LATENT_BETAS = (1e-4, 0.02, "linear"), (0.00085, 0.012, "linear")

CHAINS = {
    **dict.fromkeys(
        (
            "DDPMScheduler",
            "DDPMParallelScheduler",
            "DDIMScheduler",
            "DDIMParallelScheduler",
            "PNDMScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "UniPCMultistepScheduler",
            "DEISMultistepScheduler",
            "SASolverScheduler",
            "EulerDiscreteScheduler",
            "EulerAncestralDiscreteScheduler",
            "LMSDiscreteScheduler",
        ),
        DDPM_BETAS,
    ),
    **dict.fromkeys(
        (
            "HeunDiscreteScheduler",
            "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
            "DPMSolverSDEScheduler",
        ),
        LATENT_BETAS,
    ),
}
"""Schedulers that sample DDPM's chain, and their defaults for its first and last beta and the schedule."""

CLIPPED = ("DDPMScheduler", "DDPMParallelScheduler", "DDIMScheduler", "DDIMParallelScheduler")
"""Those that bound x₀ unless they are told not to."""

EDM, VE = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"), "ScoreSdeVeScheduler"

_FLOW = "a flow that joins data and noise by straight lines, x = (1 − t) x₀ + t ε, is no SDE that is here"
_FEW = "its network jumps to data in a few steps, and is no denoiser at every noise level"
_TOKENS = "it is for tokens, not for Gaussian noise"
_UNTOLD = "it does not say how the network is told the time; give --config=FILE and take the scheduler's file away"
OTHERS = {
    "FlowM": _FLOW,
    "Helios": _FLOW,
    "LTXEuler": _FLOW,
    "Piflow": _FLOW,
    "CMStochastic": _FEW,
    "LCM": _FEW,
    "TCD": _FEW,
    "SCM": _FEW,
    "VQ": _TOKENS,
    "Amused": _TOKENS,
    "BlockRefinement": _TOKENS,
    "DiscreteDDIM": _TOKENS,
    "EntropyBound": _TOKENS,
    "ScoreSdeVp": _UNTOLD,
    "KarrasVe": _UNTOLD,
    "IPNDM": "its network is told an angle of its own in place of the index",
    "CosineDPMSolver": "its network is told the angle atan σ",
    "UnCLIP": "it is part of a pipeline that is told an image embedding",
    "CogVideoX": "it shifts the noise of its betas for videos",
    "DDPMWuerstchen": "it is for latents, with a continuous cosine schedule of its own",
}
"""Other schedulers by how their names begin, and why they are not here."""

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "original_sample": "x0", "v_prediction": "v"}

READ = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "predict_epsilon", "variance_type", "timestep_type", "use_flow_sigmas", "sigma_data"),
    *("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
    *("snr", "correct_steps", "tensor_format"),
)
"""Options that are taken over or refused, and one that is about files."""

SAMPLING: dict[str, tuple[Any, ...]] = {
    "timestep_spacing": (None,),
    "steps_offset": (0,),
    "set_alpha_to_one": (True, False),
    "skip_prk_steps": (True, False),
    "solver_order": (2,),
    "algorithm_type": ("dpmsolver++", "deis", "data_prediction"),
    "solver_type": ("midpoint", "logrho", "bh2"),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "lower_order_final": (True, False),
    "euler_at_final": (False,),
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "final_sigmas_type": ("zero",),
    "lambda_min_clipped": (float("-inf"), "-inf"),
    "interpolation_type": ("linear",),
    "predict_x0": (True,),
    "solver_p": (None,),
    "disable_corrector": ([],),
    "predictor_order": (2,),
    "corrector_order": (2,),
    "tau_func": (None,),
    "noise_sampler_seed": (None,),
    "use_dynamic_shifting": (False,),
    "time_shift_type": ("exponential",),
    "flow_shift": (1.0,),
    "shift_terminal": (None,),
    "sigma_schedule": ("karras",),
    "rho": (7.0,),
    "sampling_eps": (1e-5,),
    "timestep_values": (None,),
}
"""Options of how to draw samples alone, and values with which there is nothing to tell."""


def read_diffusion(path: Path, scheduler: dict[str, Any], fourier: bool, doubled: bool = False) -> dict[str, Any]:
    """Return our configuration of the SDE, the denoiser, and what goes with them.

    Args:
        path: of the file.
        scheduler: what it says.
        fourier: whether the network is told σ, as the logarithm in Fourier features.
        doubled: whether the network has twice as many channels as the picture.

    Raises:
        InputError: on a scheduler or an option that is not here, for its reason.
    """
    name = str(scheduler.get("_class_name"))
    if name not in CHAINS and name not in EDM and name != VE:
        raise refuse(path, "_class_name", name, _why_not(name))
    _require_known_options(path, scheduler)
    if fourier is not (name == VE):
        kind, told = ("fourier", "σ") if fourier else ("positional", "the index")
        reason = f"not supported with time_embedding_type={kind!r}, which has to be told {told}"
        raise refuse(path, "_class_name", name, reason)
    learned = scheduler.get("variance_type") == "learned_range"
    if doubled and not (learned and name in CHAINS):
        said = scheduler.get("variance_type")
        raise refuse(path, "variance_type", said, "expected 'learned_range', for the network has twice the channels")
    if name == VE:
        return _ve(path, scheduler)
    return _edm(path, scheduler) if name in EDM else _ddpm(path, scheduler, doubled)


def _why_not(name: str) -> str:
    known = "a scheduler of DDPM's betas (DDPM, DDIM, PNDM, DPM-Solver, UniPC, Euler, Heun …), of EDM or ScoreSdeVe"
    reason = next((why for start, why in OTHERS.items() if name.startswith(start)), "not known here")
    return f"{reason}; expected {known}"


def _require_known_options(path: Path, scheduler: dict[str, Any]) -> None:
    for key, value in scheduler.items():
        if not key.startswith("_") and key not in READ and key not in SAMPLING:
            raise refuse(
                path, key, value, f"not known of {scheduler['_class_name']}; take it out if it changes nothing"
            )


def not_taken_over(scheduler: dict[str, Any]) -> list[str]:
    """Return what a scheduler says of how to draw samples, as "option=value", that is left to our samplers."""
    of_noise = () if scheduler["_class_name"] in CHAINS else ("sigma_min", "sigma_max")
    said = {key: value for key, value in scheduler.items() if key in SAMPLING and key not in of_noise}
    return [f"{key}={value!r}" for key, value in said.items() if value not in SAMPLING[key]]


def _ve(path: Path, scheduler: dict[str, Any]) -> dict[str, Any]:
    ends = {"sigma_min": scheduler.get("sigma_min", 0.01), "sigma_max": scheduler.get("sigma_max", 1348.0)}
    for key, value in ends.items():
        require_float(f"{path}: {key}", value, 0.0, open_low=True)
    label = {"name": "log_sigma", "log_sigma": {"scale": 0.5}}
    denoiser = {"prediction": "eps", "sigma_data": 0.0, "noise_label": label}
    snr, corrections = scheduler.get("snr", 0.15), scheduler.get("correct_steps", 1)
    require_float(f"{path}: snr", snr, 0.0, open_low=True)
    require_int(f"{path}: correct_steps", corrections, 1)
    return {
        "sde": {"name": "ve", "ve": {key: 2.0 * value for key, value in ends.items()}},
        "denoiser": denoiser,
        "sampler": {"pc": {"snr": float(snr), "corrector_steps": corrections}},
    }


def _edm(path: Path, scheduler: dict[str, Any]) -> dict[str, Any]:
    """Karras et al. 2022, arXiv:2206.00364, Table 1; "v_prediction" there is the other sign of the network's output."""
    defaults = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
    numbers = {key: scheduler.get(key, value) for key, value in defaults.items()}
    for key, value in numbers.items():
        require_float(f"{path}: {key}", value, 0.0, open_low=True)
    prediction = scheduler.get("prediction_type", "epsilon")
    require_known(path, "prediction_type", prediction, ["epsilon", "v_prediction"])
    data = float(numbers.pop("sigma_data"))
    label = {"name": "log_snr", "log_snr": {"scale": 0.125}}
    denoiser = {"prediction": "edm", "sigma_data": data, "noise_label": label}
    loss = {"times": {"name": "log_normal"}, "weighting": {"name": "edm", "edm": {"sigma_data": data}}}
    return {
        "sde": {"name": "ve", "ve": {key: float(value) for key, value in numbers.items()}},
        "denoiser": {**denoiser, "thresholding": thresholding(path, scheduler)},
        "objective": {"name": "denoising", "denoising": loss},
    }


def reverses_sign(scheduler: dict[str, Any]) -> bool:
    """Return whether the network's output has the other sign of what we read: the score of VE, and v of EDM."""
    edm = scheduler.get("_class_name") in EDM and scheduler.get("prediction_type") == "v_prediction"
    return edm or scheduler.get("_class_name") == VE


def _ddpm(path: Path, scheduler: dict[str, Any], doubled: bool) -> dict[str, Any]:
    if scheduler.get("rescale_betas_zero_snr"):
        raise refuse(path, "rescale_betas_zero_snr", True, "not supported; the last β is 1, where x₀ cannot be read")
    if scheduler.get("use_flow_sigmas"):
        raise refuse(path, "use_flow_sigmas", True, _FLOW)
    if scheduler.get("timestep_type", "discrete") != "discrete":
        raise refuse(path, "timestep_type", scheduler["timestep_type"], "its network is told ¼ log σ, not the index")
    old = "sample" if scheduler.get("predict_epsilon") is False else "epsilon"
    prediction = scheduler.get("prediction_type", old)
    if prediction == "flow_prediction":
        raise refuse(path, "prediction_type", prediction, _FLOW)
    require_known(path, "prediction_type", prediction, list(PREDICTIONS))
    variances = ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", None]
    said = scheduler.get("variance_type")
    if not doubled and said not in variances:
        known = said in ("learned", "learned_range")
        reason = "expected a network with twice the channels" if known else "not supported"
        raise refuse(path, "variance_type", said, reason)
    chain = _chain(path, scheduler)
    build(path, SDES.build, "ddpm", **chain)
    discrete = {"num_train_steps": len(chain["betas"]) if "betas" in chain else chain["num_train_steps"]}
    label = times = {"name": "discrete", "discrete": discrete}
    variance = "predicted" if doubled else "beta" if str(said).startswith("fixed_large") else "posterior"
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
    defaults = CHAINS[scheduler["_class_name"]]
    number = scheduler.get("num_train_timesteps", 1000)
    keys = ("beta_start", "beta_end", "beta_schedule")
    first, last, schedule = (scheduler.get(key, default) for key, default in zip(keys, defaults, strict=True))
    require_chain(f"{path}: num_train_timesteps", number)
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

    ``thresholding`` goes before ``clip_sample``, which is on by default in some schedulers. The DDIM schedulers step
    with ε as the network predicts it, whatever becomes of x₀; the others read x₀ alone.
    """
    keep = {"keep_eps": scheduler["_class_name"].startswith("DDIM")}
    if scheduler.get("thresholding"):
        percentile, largest = scheduler.get("dynamic_thresholding_ratio", 0.995), scheduler.get("sample_max_value", 1.0)
        require_float(f"{path}: dynamic_thresholding_ratio", percentile, 0.0, 1.0, open_low=True)
        require_float(f"{path}: sample_max_value", largest, 1.0)
        return {"name": "dynamic", "dynamic": {"percentile": percentile, "max_value": float(largest), **keep}}
    if not scheduler.get("clip_sample", scheduler["_class_name"] in CLIPPED):
        return {"name": "none"}
    bound = scheduler.get("clip_sample_range", 1.0)
    require_float(f"{path}: clip_sample_range", bound, 0.0, open_low=True)
    return {"name": "static", "static": {"bound": float(bound), **keep}}
