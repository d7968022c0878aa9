"""The configuration of score_sde_pytorch in our words: network, SDE, time label, and the times it was trained at.

It is read from JSON with the sections ``data``, ``model`` and ``training`` of theirs. Their VE data are in [0, 1], and
the network doubles them; ours are in [−1, 1]: noise levels are doubled, and the label is log(σ/2).

References:
    Y. Song et al., 2021, arXiv:2011.13456, Section 4.4 and Appendix H; github.com/yang-song/score_sde_pytorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sde_diffusion.errors import InputError, require, require_float
from sde_diffusion.networks.skip_unet import INPUTS, OUTPUTS
from sde_diffusion.reading import read_json


class _Description:
    """Their configuration, as ``NAME.json`` has it."""

    def __init__(self, path: Path) -> None:
        self.path, self._content = path, read_json(path)

    def get(self, section: str, key: str) -> Any:
        """Return a field.

        Raises:
            InputError: if it is missing.
        """
        try:
            return self._content[section][key]
        except (KeyError, TypeError):
            raise InputError(f"{self.path}: missing {section}.{key} of score_sde_pytorch's configuration") from None

    def demand(self, section: str, key: str, *here: Any) -> Any:
        """Return a field that must have one of the values that exist here.

        Raises:
            InputError: if it is missing or has another value.
        """
        value = self.get(section, key)
        expected = " or ".join(map(repr, here)) + " beside its other fields"
        require(value in here, f"{self.path}: {section}.{key}", value, expected, "what else there may be is not here")
        return value

    def number(self, section: str, key: str) -> float:
        """Return a field that must be a number of at least 0.

        Raises:
            InputError: if it is missing or is none.
        """
        value = self.get(section, key)
        require_float(f"{self.path}: {section}.{key}", value, 0.0)
        return float(value)


def _network(described: _Description) -> dict[str, Any]:
    """Return ``config.network`` of a described one."""
    name = described.demand("model", "name", "ddpm", "ncsnpp")
    described.demand("model", "nonlinearity", "swish")
    described.demand("model", "conditional", True)
    pyramids: dict[str, Any] = {}
    fourier = False  # DDPM's network has no choice, whatever the field says
    if name == "ddpm":
        described.demand("model", "resamp_with_conv", True)
    else:
        fir = described.get("model", "fir")
        name = "ncsnpp" if fir else "ddpmpp"
        if fir:
            described.demand("model", "fir_kernel", [1, 3, 3, 1])
        inputs, outputs = (INPUTS, OUTPUTS) if fir else (("none",), ("none",))
        pyramids["progressive_input"] = described.demand("model", "progressive_input", *inputs)
        pyramids["progressive"] = described.demand("model", "progressive", *outputs)
        if pyramids["progressive_input"] == "input_skip":
            described.demand("model", "progressive_combine", "sum")
        described.demand("model", "resblock_type", "biggan")
        described.demand("model", "skip_rescale", True)
        on_sigma = described.get("training", "sde") == "vesde" and described.get("training", "continuous")
        fourier = described.demand("model", "embedding_type", "fourier" if on_sigma else "positional") == "fourier"
    options = {
        "channels": described.get("model", "nf"),
        "channel_mults": described.get("model", "ch_mult"),
        "num_blocks": described.get("model", "num_res_blocks"),
        "attention": described.get("model", "attn_resolutions"),
        "dropout": described.number("model", "dropout"),
        "embedding": "fourier" if fourier else "sinusoidal",
    }
    return {"name": name, name: {**options, **(pyramids if name == "ncsnpp" else {})}}


def _sde_and_label(described: _Description) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return ``config.sde`` and ``config.denoiser.noise_label`` of a described network."""
    kind = described.demand("training", "sde", "vpsde", "subvpsde", "vesde")
    described.demand("model", "scale_by_sigma", kind == "vesde")
    levels = int(described.number("model", "num_scales"))
    if kind == "vesde":
        unit = 1.0 if described.get("data", "centered") else 2.0
        sde = {f"sigma_{end}": unit * described.number("model", f"sigma_{end}") for end in ("min", "max")}
        label = {"name": "log_sigma", "log_sigma": {"scale": 1.0 / unit}}
        if described.get("model", "name") == "ddpm" or not described.get("training", "continuous"):
            described.demand("training", "continuous", False)
            label = {"name": "reversed", "reversed": {"num_train_steps": levels}}
        return {"name": "ve", "ve": sde}, label
    described.demand("data", "centered", True)
    betas = {f"beta_{end}": described.number("model", f"beta_{end}") for end in ("min", "max")}
    name = kind.removesuffix("sde")
    if described.demand("training", "continuous", True, name == "subvp"):
        return {"name": name, name: betas}, {"name": "scaled", "scaled": {"scale": 999.0}}
    first, last = (beta / levels for beta in betas.values())
    chain = {"schedule": "linear", "num_train_steps": levels, "beta_first": first, "beta_last": last}
    return {"name": "ddpm", "ddpm": chain}, {"name": "discrete", "discrete": {"num_train_steps": levels}}


def read_description(path: Path) -> dict[str, Any]:
    """Return our configuration of the network that a file describes.

    Raises:
        InputError: on a field that is missing or has a value that is not here; names it.
    """
    described = _Description(path)
    sde, label = _sde_and_label(described)
    levels = int(described.number("model", "num_scales"))
    size = described.get("data", "image_size")
    data = {"shape": (described.get("data", "num_channels"), size, size), "levels": 256}
    if described.get("data", "dataset") == "CIFAR10" and size == 32:
        data["name"] = "cifar10"
    steps = {"discrete": levels, "reversed": levels - 1}.get(label["name"])
    times = {"name": "discrete", "discrete": {"num_train_steps": steps}} if steps else {"name": "uniform"}
    return {
        "threads": 0,
        "data": data,
        "network": _network(described),
        "sde": sde,
        "denoiser": {"prediction": "eps", "sigma_data": 0.0, "noise_label": label},
        "objective": {"name": "denoising", "denoising": {"times": times, "weighting": {"name": "simple"}}},
    }
