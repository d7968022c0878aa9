"""Checkpoints of score_sde_pytorch, the code of Song et al. 2021.

A ``.pth`` file holds {optimizer, model, ema, step}: ``model`` by names ``module.all_modules.K.…``, K counting modules
in the order in which they act, and ``ema["shadow_params"]``, a list of the trained parameters in the order of
``model``. What the network and its SDE are is not in it. That is read from ``NAME.json`` beside ``NAME.pth`` (sections
``data``, ``model``, ``training`` of their configuration), or else from one of our configurations.

Two differences of convention go into the numbers, exactly:

    their VE networks return the score, a last layer over σ; ours the noise     the last layer changes sign
    their VE data are in [0, 1], and the network doubles them; ours in [−1, 1]  noise levels are doubled, label log(σ/2)

References:
    Y. Song et al., 2021, arXiv:2011.13456, Section 4.4 and Appendix H; github.com/yang-song/score_sde_pytorch.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, require, require_float
from sde_diffusion.files import read_json, sha256
from sde_diffusion.networks import DDPM, NETWORKS, SkipUNet
from sde_diffusion.networks.embeddings import GaussianFourier
from sde_diffusion.networks.layers import Attention, ConvDouble, ResBlock
from sde_diffusion.networks.skip_unet import ConvHalve, FIRConvHalve
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained


def _read(path: Path) -> tuple[dict[str, Tensor], list[Tensor], int]:
    """Read the weights, without ``module.`` in their names, the averaged ones and the training step.

    Raises:
        InputError: if the file holds anything that would run, or is not such a checkpoint.
    """
    # Their warm-up leaves the learning rate as a NumPy number: no code, but a name that must be known.
    scalar: Any = np.float64(0.0).__reduce__()[0]
    numbers = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals([*numbers, np.dtype, np.dtypes.Float64DType]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{found[1]}, which could run code" if found else "something else than tensors and numbers"
        raise InputError(f"{path}: refused, it holds {what}; only tensors and numbers are read") from None
    except Exception as error:  # whatever a broken file makes the reader raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a readable checkpoint of score_sde_pytorch ({reason})") from None
    try:
        model = {key.removeprefix("module."): tensor.float() for key, tensor in content["model"].items()}
        return model, [tensor.float() for tensor in content["ema"]["shadow_params"]], int(content["step"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        expected = "model, ema with shadow_params, and step, as score_sde_pytorch writes them"
        raise InputError(f"{path}: expected {expected}; {type(error).__name__}: {error}") from None


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
    fourier = False  # DDPM's network has no choice, whatever the field says
    if name == "ddpm":
        described.demand("model", "resamp_with_conv", True)
    else:
        fir = described.get("model", "fir")
        name = "ncsnpp" if fir else "ddpmpp"
        if fir:
            described.demand("model", "fir_kernel", [1, 3, 3, 1])
        described.demand("model", "progressive_input", "residual" if fir else "none")
        described.demand("model", "progressive", "none")
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
    return {"name": name, name: options}


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


def _config(described: _Description) -> dict[str, Any]:
    """Return our configuration of a described network."""
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
        "loss": {"times": times, "weighting": {"name": "simple"}},
    }


_PARTS: dict[type[nn.Module], dict[str, tuple[str, ...]]] = {
    ResBlock: {
        "norm_in": ("GroupNorm_0",),
        "conv_in": ("Conv_0",),
        "code": ("Dense_0",),
        "norm_out": ("GroupNorm_1",),
        "conv_out": ("Conv_1",),
        "skip": ("Conv_2",),
    },
    Attention: {"norm": ("GroupNorm_0",), "qkv": ("NIN_0", "NIN_1", "NIN_2"), "out": ("NIN_3",)},
    ConvHalve: {"conv": ("Conv_0",)},
    ConvDouble: {"conv": ("Conv_0",)},
    FIRConvHalve: {"conv": ("Conv2d_0",)},
}
"""What the parts of our blocks are called there; qkv is one convolution here and three there."""


def _modules(net: SkipUNet) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names of our modules, and the modules, in the order in which theirs are numbered."""
    for i, layer in enumerate(net.time.layers):
        if isinstance(layer, (GaussianFourier, nn.Linear)):
            yield f"time.layers.{i}", layer
    yield "stem", net.stem
    inputs = iter(net.inputs.named_children())
    for part in ("down", "middle", "up"):
        for i, block in enumerate(getattr(net, part)):
            yield f"{part}.{i}", block
            if isinstance(block, ResBlock) and isinstance(block.attention, Attention):
                yield f"{part}.{i}.attention", block.attention
            if part == "down" and net.adds_input(i):
                name, module = next(inputs)
                yield f"inputs.{name}", module
    yield "norm", net.norm
    yield "head", net.head


def _origins(net: SkipUNet) -> dict[str, list[str]]:
    """Return, for each tensor of our network by name, the names of theirs that it is made of."""
    own, origins = net.state_dict(), {}
    for number, (name, module) in enumerate(_modules(net)):
        for part, theirs in _PARTS.get(type(module), {"": ("",)}).items():
            if part == "skip" and isinstance(net, DDPM):
                theirs = ("NIN_0",)
            for kind in ("weight", "bias", "frequencies"):
                key = ".".join(filter(None, (name, part, kind)))
                if key in own:
                    origins[key] = [_their_key(number, stem, kind) for stem in theirs]
    return origins


def _their_key(number: int, stem: str, kind: str) -> str:
    if stem.startswith("NIN") or kind == "frequencies":
        kind = {"weight": "W", "bias": "b", "frequencies": "W"}[kind]
    return ".".join(filter(None, (f"all_modules.{number}", stem, kind)))


def _translate(theirs: dict[str, Tensor], net: SkipUNet, path: Path) -> dict[str, Tensor]:
    """Return the weights by the names and in the shapes of our network.

    Raises:
        InputError: on keys that are missing, too many, or of another shape; names them.
    """
    own, origins = net.state_dict(), _origins(net)
    shapes = {}
    for name, keys in origins.items():
        rows, *rest = own[name].shape
        rows //= len(keys)
        for key in keys:  # NIN's matrices are our 1×1 convolutions, turned over
            shapes[key] = (rest[0], rows) if ".NIN" in key and key.endswith(".W") else (rows, *rest)
    problems = [f"missing {key}" for key in shapes if key not in theirs]
    problems += [f"unexpected {key}" for key in theirs if key not in shapes]
    problems += [
        f"{key} has shape {tuple(theirs[key].shape)}, not {shape}"
        for key, shape in shapes.items()
        if key in theirs and theirs[key].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"{path}: does not fit the network as configured: {'; '.join(problems[:3])}{more}; compare config.network "
            "and the shape of config.data with what the checkpoint was trained with"
        )

    def turned(key: str) -> Tensor:
        return theirs[key].T[:, :, None, None] if ".NIN" in key and key.endswith(".W") else theirs[key]

    return {name: torch.cat([turned(key) for key in keys]).contiguous() for name, keys in origins.items()}


def _averaged(model: dict[str, Tensor], shadow: list[Tensor], path: Path) -> dict[str, Tensor]:
    """Return ``model`` with the averaged parameters in it."""
    trained = [key for key in model if key != "all_modules.0.W"]  # Fourier frequencies stay as they were drawn
    fits = [p.shape for p in shadow] == [model[key].shape for key in trained]
    require(fits, f"{path}: ema.shadow_params", f"{len(shadow)} tensors", "one in the shape of each parameter of model")
    return {**model, **dict(zip(trained, shadow, strict=True))}


@LOADERS.register("score_sde")
class ScoreSDE(Loader):
    """A .pth file of score_sde_pytorch."""

    def recognises(self, path: Path) -> bool:
        return path.is_file() and path.suffix == ".pth"

    def load(self, path: Path, config: dict[str, Any] | None) -> Pretrained:
        beside = path.with_suffix(".json")
        if beside.exists():
            config = _config(_Description(beside))
        if config is None:
            raise InputError(
                f"{path}: has weights but no architecture in it; give the configuration it was trained with, "
                f"--config=configs/ve/cifar10_ncsnpp.py or another, or put {beside.name} beside it"
            )
        name, prediction = config["network"]["name"], config["denoiser"]["prediction"]
        with torch.device("meta"):
            net = NETWORKS.build(name, shape=config["data"]["shape"], **config["network"].get(name, {}))
        if not isinstance(net, SkipUNet):
            raise InputError(f"network.name={name!r}: expected 'ddpm', 'ddpmpp' or 'ncsnpp' for {path}")
        require(prediction == "eps", "denoiser.prediction", prediction, f"'eps' for {path}")
        model, shadow, step = _read(path)
        sigmas = model.pop("sigmas", None)
        averaged, raw = (_translate(w, net, path) for w in (_averaged(model, shadow, path), model))
        if config["sde"]["name"] == "ve":
            _check_noise(config, sigmas, path)
            averaged, raw = (
                {key: -value if key.startswith("head.") else value for key, value in weights.items()}
                for weights in (averaged, raw)
            )
        facts = {"format": "score_sde_pytorch", "path": str(path), "sha256": sha256(path)}
        return Pretrained(config, averaged, raw, step, facts)


def _check_noise(config: dict[str, Any], sigmas: Tensor | None, path: Path) -> None:
    """Refuse noise levels that are not the checkpoint's, in units of data in [−1, 1] or, half of them, in [0, 1]."""
    if sigmas is not None:
        own, top = config["sde"]["ve"]["sigma_max"], float(sigmas.max())
        same = any(math.isclose(own, unit * top, rel_tol=1e-4) for unit in (1.0, 2.0))
        require(same, "sde.ve.sigma_max", own, f"{2 * top:g}, twice the largest noise level in {path}")
