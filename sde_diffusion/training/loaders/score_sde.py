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
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, require
from sde_diffusion.files import sha256
from sde_diffusion.networks import DDPM, SkipUNet
from sde_diffusion.networks.blocks import Attention, ResBlock
from sde_diffusion.networks.embeddings import GaussianFourier
from sde_diffusion.networks.resampling import ConvDouble, ConvHalve, FIRConvHalve
from sde_diffusion.networks.skeleton import skeleton
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained
from sde_diffusion.training.loaders.score_sde_description import read_description
from sde_diffusion.training.loaders.tensor_files import outline, problems_of, read_pickle, states


def _read(path: Path) -> tuple[dict[str, Tensor], list[Tensor], int]:
    """Read the weights, without ``module.`` in their names, the averaged ones and the training step.

    Raises:
        InputError: if the file holds anything that would run, or is not such a checkpoint.
    """
    content = read_pickle(path, "checkpoint of score_sde_pytorch")
    try:
        model = {key.removeprefix("module."): tensor.float() for key, tensor in content["model"].items()}
        return model, [tensor.float() for tensor in content["ema"]["shadow_params"]], int(content["step"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        expected = "model, ema with shadow_params, and step, as score_sde_pytorch writes them"
        raise InputError(f"{path}: expected {expected}; {type(error).__name__}: {error}") from None


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


TO_PICTURE = r"head\.|outputs\.\d+\.conv\."
"""The layers whose sum is the output."""

EMPTY = nn.Identity()
"""What halves or doubles a picture there: it is counted and has no weights."""


def _modules(net: SkipUNet) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names of our modules, and the modules, in the order in which theirs are numbered."""
    for i, layer in enumerate(net.time.layers):
        if isinstance(layer, (GaussianFourier, nn.Linear)):
            yield f"time.layers.{i}", layer
    yield "stem", net.stem
    inputs = iter(net.inputs.named_children())
    number = 0
    for part in ("down", "middle", "up"):
        for i, block in enumerate(getattr(net, part)):
            yield f"{part}.{i}", block
            if isinstance(block, ResBlock) and isinstance(block.attention, Attention):
                yield f"{part}.{i}.attention", block.attention
            if part == "down" and net.adds_input(i):
                if net.progressive_input == "input_skip":
                    yield "", EMPTY
                name, module = next(inputs)
                yield f"inputs.{name}", module
            if part == "up" and len(net.outputs) and _ends_level(net, i):
                if number:
                    yield "", EMPTY
                for kind, module in net.outputs[number].named_children():
                    yield f"outputs.{number}.{kind}", module
                number += 1
    if number:
        yield "", EMPTY
    yield "norm", net.norm
    yield "head", net.head


def _ends_level(net: SkipUNet, i: int) -> bool:
    """Return whether block ``i`` of the way up is the last at its size, and not of the top."""
    return i % (net.num_blocks + 2) == net.num_blocks and i + 1 < len(net.up)


def _origins(net: SkipUNet) -> dict[str, list[str]]:
    """Return, for each tensor of our network by name, the names of theirs that it is made of."""
    own, origins = net.state_dict(), {}
    for number, (name, module) in enumerate(_modules(net)):
        for part, theirs in _PARTS.get(type(module), {"": ("",)}).items():
            if part == "skip" and isinstance(net, DDPM):
                theirs = ("NIN_0",)
            if name.startswith("inputs.") and net.progressive_input == "input_skip":
                theirs = ("Conv_0",)
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
    problems = problems_of(shapes, theirs)
    if problems:
        raise InputError(
            f"{path}: does not fit the network as configured: {problems}; compare config.network and the shape of "
            "config.data with what the checkpoint was trained with"
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
        found = states(outline(path))
        if found is None:  # it may be one that is broken
            return path.is_file() and path.suffix == ".pth"
        return any(name.startswith("all_modules.") for name in found[0])

    def load(self, path: Path, config: dict[str, Any] | None) -> Pretrained:
        beside = path.with_suffix(".json")
        if beside.exists():
            config = read_description(beside)
        if config is None:
            raise InputError(
                f"{path}: has weights but no architecture in it; give the configuration it was trained with, "
                f"--config=configs/cifar10.py:ve-ncsnpp or another, or put {beside.name} beside it"
            )
        name, prediction = config["network"]["name"], config["denoiser"]["prediction"]
        net = skeleton(name, shape=config["data"]["shape"], **config["network"].get(name, {}))
        if not isinstance(net, SkipUNet):
            raise InputError(f"network.name={name!r}: expected 'ddpm', 'ddpmpp' or 'ncsnpp' for {path}")
        require(prediction == "eps", "denoiser.prediction", prediction, f"'eps' for {path}")
        model, shadow, step = _read(path)
        sigmas = model.pop("sigmas", None)
        averaged, raw = (_translate(w, net, path) for w in (_averaged(model, shadow, path), model))
        if config["sde"]["name"] == "ve":
            _check_noise(config, sigmas, path)
            averaged, raw = (
                {key: -value if re.match(TO_PICTURE, key) else value for key, value in weights.items()}
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
