"""Checkpoints of improved and guided diffusion, and of what was built on them: a bare state dict in a ``.pt`` file.

The names count modules in the order in which they act: ``input_blocks.N``, ``middle_block``, ``output_blocks.N``. The
shapes tell widths, blocks, where there is attention, how the time enters, the number of classes, whether the variance
is learned. What they do not tell is asked of the user's configuration: the size of the pictures, the heads of attention
and the order of their weights, the noise.

References:
    A. Nichol, P. Dhariwal, 2021, arXiv:2102.09672; P. Dhariwal, A. Nichol, 2021, arXiv:2105.05233;
    github.com/openai/improved-diffusion, github.com/openai/guided-diffusion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, require
from sde_diffusion.files import sha256
from sde_diffusion.networks.skeleton import skeleton
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained
from sde_diffusion.training.loaders.descriptions import build
from sde_diffusion.training.loaders.tensor_files import outline, problems_of, read_pickle, states

FIRST = "input_blocks.0.0.weight"
LATENT = "model.diffusion_model."

NAMES = [
    (r"^time\.1\.", "time_embed.0."),
    (r"^time\.3\.", "time_embed.2."),
    (r"^classes\.", "label_emb."),
    (r"^stem\.", "input_blocks.0.0."),
    (r"^norm\.", "out.0."),
    (r"^head\.", "out.2."),
    (r"^middle\.attention\.", "middle_block.1."),
    (r"^middle\.blocks\.1\.", "middle_block.2."),
    (r"^middle\.blocks\.0\.", "middle_block.0."),
    (r"\.norm_in\.", ".in_layers.0."),
    (r"\.conv_in\.", ".in_layers.2."),
    (r"\.code\.", ".emb_layers.1."),
    (r"\.norm_out\.", ".out_layers.0."),
    (r"\.conv_out\.", ".out_layers.3."),
    (r"\.skip\.", ".skip_connection."),
    (r"^(middle_block\.1|(?:down|up)\.\d+\.attention\.\d+)\.out\.", r"\1.proj_out."),
    (r"^(down\.\d+\.resample)\.conv\.", r"\1.op."),
]
"""What leads from our names to theirs within a module; where the module is counts :func:`_their_name`."""


def _names(content: Any) -> dict[str, Tensor]:
    """Return the averaged state dict, or else the only one, that was read; empty if there is none."""
    found = states(content)
    return {} if found is None else found[0]


def _their_name(name: str, attends: Mapping[str, list[bool]], blocks: int) -> str:
    """Return what a tensor of ours is called there."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    match = re.match(r"(down|up)\.(\d+)\.(?:(blocks|attention)\.(\d+)|resample)\.", name)
    if match is None:
        return name
    way, level, part, i = match[1], int(match[2]), match[3], match[4]
    number = level * (blocks + 1) + (blocks if part is None else int(i)) + (way == "down")
    place = {"blocks": 0, "attention": 1}.get(part or "", way == "up" and 1 + attends["up"][level])
    return f"{'input' if way == 'down' else 'output'}_blocks.{number}.{int(place)}.{name[match.end() :]}"


def _require_denoiser(path: Path, tensors: Mapping[str, Tensor]) -> int:
    """Return the channels of the pictures; refuse relatives of these networks for what they are."""
    if "out.2.weight" not in tensors or "output_blocks.0.0.in_layers.2.weight" not in tensors:
        raise InputError(
            f"{path}: it has no output_blocks, a classifier or an encoder; expected a network that denoises"
        )
    seen, out = tensors[FIRST].shape[1], tensors["out.2.weight"].shape[0]
    if any(".transformer_blocks." in name for name in tensors):
        raise InputError(
            f"{path}: it has transformer_blocks, attention to a text or another sequence, which is not here"
        )
    if out not in (seen, 2 * seen):
        what = (
            "a network that is told a second picture (an upsampler)" if out in (seen // 2, seen) else "another network"
        )
        raise InputError(f"{path}: it takes {seen} channels and returns {out}: {what} is not here")
    return int(seen)


def _options(path: Path, tensors: Mapping[str, Tensor], channels: int) -> tuple[dict[str, Any], int]:
    """Return the options of our network that shapes determine, and the blocks of a level."""

    def there(pattern: str) -> list[int]:
        return sorted({int(m[1]) for name in tensors if (m := re.match(pattern, name))})

    outputs = there(r"output_blocks\.(\d+)\.")
    doubling = there(r"output_blocks\.(\d+)\.[12]\.(?:conv|in_layers\.2)\.weight")
    blocks = doubling[0] if doubling else len(outputs) - 1
    levels, rest = divmod(len(outputs), blocks + 1)
    good = blocks > 0 and rest == 0 and doubling == [level * (blocks + 1) + blocks for level in range(levels - 1)]
    require(
        good, f"{path}: output_blocks", outputs, "as many blocks on every level, each but the last with an upsampling"
    )
    firsts = [1 + level * (blocks + 1) for level in range(levels)]
    missing = [i for i in firsts if f"input_blocks.{i}.0.out_layers.3.weight" not in tensors]
    require(not missing, f"{path}: input_blocks", missing, f"residual blocks where {levels} levels of {blocks} begin")
    in_blocks = any(re.match(r"output_blocks\.\d+\.[12]\.in_layers\.", name) for name in tensors)
    kind = "block" if in_blocks else "conv"
    down = [kind + "+attention" * (f"input_blocks.{i}.1.qkv.weight" in tensors) for i in firsts]
    up = [f"output_blocks.{level * (blocks + 1)}.1.qkv.weight" in tensors for level in range(levels)]
    first = "input_blocks.1.0"
    code = tensors[f"{first}.emb_layers.1.weight"].shape[0]
    return {
        "widths": tuple(tensors[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0] for i in firsts),
        "num_blocks": blocks,
        "down": tuple(down),
        "up": tuple(kind + "+attention" * attends for attends in up),
        "scale_shift": code == 2 * tensors[f"{first}.out_layers.3.weight"].shape[0],
        "frequency_shift": 0.0,
        "waves": tensors["time_embed.0.weight"].shape[1],
        "code_width": tensors["time_embed.0.weight"].shape[0],
        "num_classes": tensors["label_emb.weight"].shape[0] if "label_emb.weight" in tensors else 0,
        "learned_variance": tensors["out.2.weight"].shape[0] != channels,
    }, blocks


def _translate(
    path: Path, tensors: dict[str, Tensor], own: dict[str, Tensor], options: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the weights by our names; their waves have the cosines first."""
    attends = {way: [kind.endswith("+attention") for kind in options[way]] for way in ("down", "up")}
    names = {name: _their_name(name, attends, options["num_blocks"]) for name in own}
    flat = {
        name: tensor.float().flatten(1) if re.search(r"\.(qkv|proj_out)\.weight$", name) else tensor.float()
        for name, tensor in tensors.items()
    }
    problems = problems_of({theirs: tuple(own[name].shape) for name, theirs in names.items()}, flat)
    if problems:
        raise InputError(f"{path}: not the architecture of guided diffusion that is here: {problems}")
    weights = {name: flat[theirs] for name, theirs in names.items()}
    cosine, sine = weights["time.1.weight"].chunk(2, dim=1)
    return {**weights, "time.1.weight": torch.cat([sine, cosine], dim=1)}


@LOADERS.register("guided_diffusion")
class GuidedDiffusion(Loader):
    """A .pt file of improved or guided diffusion."""

    def recognises(self, path: Path) -> bool:
        return any(name.removeprefix(LATENT) == FIRST for name in _names(outline(path)))

    def load(self, path: Path, config: dict[str, Any] | None) -> Pretrained:
        tensors = _names(read_pickle(path, "state dict of guided diffusion"))
        if any(name.startswith(LATENT) for name in tensors):
            raise InputError(f"{path}: latent diffusion, a network on the codes of an autoencoder, which is not here")
        channels = _require_denoiser(path, tensors)
        if config is None:
            raise InputError(
                f"{path}: shapes tell its layers, but not the size of pictures, the heads of attention and the noise; "
                "give --config=configs/guided_diffusion.py:imagenet64 or another, or a file with data, "
                "network.name='unet2d', network.unet2d.heads or head_width and heads_first, sde and denoiser"
            )
        shape, name = tuple(config["data"]["shape"]), config["network"]["name"]
        require(name == "unet2d", "network.name", name, f"'unet2d' for {path}", "with the heads of its attention")
        require(len(shape) == 3 and shape[0] == channels, "data.shape", shape, f"pictures of {channels} channels")
        inferred, _ = _options(path, tensors, channels)
        told = {key: config["network"]["unet2d"][key] for key in ("heads", "head_width", "heads_first", "dropout")}
        options = {**inferred, **told}
        network: nn.Module = build(path, skeleton, "unet2d", shape=shape, **options)
        weights = _translate(path, tensors, network.state_dict(), options)
        found: dict[str, Any] = {
            "data": {"shape": shape, "levels": 256},
            "network": {"name": "unet2d", "unet2d": options},
        }
        if options["learned_variance"]:
            found["sampler"] = {"ancestral": {"variance": "predicted"}}
        facts = {"format": "guided-diffusion", "path": str(path), "sha256": sha256(path)}
        match = re.search(r"(?:model|ema_[\d.]+_)(\d{3,})$", path.stem)
        return Pretrained(found, weights, None, int(match[1]) if match else 0, facts)
