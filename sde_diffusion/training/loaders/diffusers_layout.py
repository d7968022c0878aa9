"""Where diffusers and those who use it put the files of a network and its scheduler.

    model_index.json  unet/  scheduler/                    a pipeline
    model_index.json  config.json  scheduler_config.json   a pipeline in one folder, as the first ones were published
    unet/  unet_ema/                                       what a training script left: the averages are beside
    config.json                                            a model alone

The weights are ``diffusion_pytorch_model.safetensors`` or ``.bin``, whole or in shards ``…-00001-of-00002…``, and where
there is nothing else of a variant, ``….fp16.safetensors``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from os.path import lexists
from pathlib import Path

from torch import Tensor

from sde_diffusion.errors import InputError, require
from sde_diffusion.files import sha256
from sde_diffusion.reading import read_json
from sde_diffusion.training.loaders.descriptions import read_config, refuse
from sde_diffusion.training.loaders.tensor_files import read_tensors

INDEX, MODEL, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
FILE = re.compile(
    r"diffusion_pytorch_model(?:\.(?P<variant>\w+))?(?:-(?P<i>\d{5})-of-(?P<n>\d{5}))?"
    r"(?:\.(?P<late>\w+))?\.(?P<kind>safetensors|bin)"
)


@dataclass(frozen=True)
class Layout:
    """Where the parts lie.

    Attributes:
        model: folder of the network, of its averages where there are any.
        raw: that of the network in training beside its averages; else None.
        scheduler: the file that describes the scheduler; None where there is none.
        named: the class that the index of a pipeline gives the scheduler, if it has one.
    """

    model: Path
    raw: Path | None
    scheduler: Path | None
    named: str | None = None


def recognises(source: Path) -> bool:
    """Return whether a folder is one of these."""
    if lexists(source / INDEX) or any(lexists(source / part / MODEL) for part in ("unet", "unet_ema")):
        return True
    config = source / MODEL
    content = read_json(config) if lexists(config) else None
    return isinstance(content, dict) and "_class_name" in content


def find(source: Path) -> Layout:
    """Return where the parts of a folder lie.

    Raises:
        InputError: on a pipeline of other parts than a network and a scheduler.
    """
    named = _require_plain_pipeline(source / INDEX).get("scheduler") if lexists(source / INDEX) else None
    inside = [source / part for part in ("unet_ema", "unet") if (source / part).is_dir()]
    models = [folder for folder in inside if lexists(folder / MODEL)]
    if not models and lexists(source / MODEL):
        models = [source]
    model = models[0] if models else [*inside, source / "unet"][0]
    near = [model, source, source / "scheduler", source.parent / "scheduler", source.parent]
    found = [place / SCHEDULER for place in near if lexists(place / SCHEDULER)]
    raw = models[1] if len(models) > 1 else None
    return Layout(model, raw, found[0] if found else None, str(named[1]) if named else None)


def _require_plain_pipeline(index: Path) -> dict[str, list[str]]:
    """Return the parts of a pipeline, each its library and class; refuse others than a network and a scheduler."""
    parts: dict[str, list[str]] = {}
    for part, value in read_config(index, "the index of a diffusers pipeline").items():
        if part.startswith("_") or value in (None, [None, None]):
            continue
        if part not in ("unet", "scheduler"):
            raise refuse(index, part, value, "not supported; expected a pipeline of unet and scheduler alone")
        if not isinstance(value, list) or len(value) != 2 or value[0] != "diffusers":
            raise refuse(index, part, value, "not supported; code outside of diffusers is not run")
        parts[part] = value
    return parts


def weights_of(folder: Path) -> list[Path]:
    """Return the files that hold the weights of a network: one, or all shards in their order.

    Safetensors are taken before pickles, and what is no variant before what is one.

    Raises:
        InputError: if there are none, shards are missing, or several variants leave a choice.
    """
    found: dict[tuple[bool, str, bool], dict[int, tuple[int, Path]]] = {}
    for path in sorted(folder.glob("diffusion_pytorch_model*")):
        match = FILE.fullmatch(path.name)
        if match:
            sharded, variant = match["i"] is not None, match["variant"] or match["late"] or ""
            shard, count = (int(match["i"]), int(match["n"])) if sharded else (1, 1)
            found.setdefault((match["kind"] == "bin", variant, sharded), {})[shard] = (count, path)
    expected = "the weights, as diffusion_pytorch_model.safetensors or .bin; there is no such file"
    require(bool(found), "source", str(folder), expected)
    if all(variant for _, variant, _ in found):
        names = sorted({variant for _, variant, _ in found})
        require(len(names) == 1, "source", str(folder), f"one variant of the weights, not {', '.join(names)}")
    shards = found[min(found, key=lambda key: (bool(key[1]), key[0], key[2]))]
    count = next(iter(shards.values()))[0]
    missing = [i for i in range(1, count + 1) if i not in shards]
    if missing:
        raise InputError(f"{folder}: the weights are in {count} files, of which number {missing[0]} is missing")
    return [shards[i][1] for i in range(1, count + 1)]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights of a network by their present names, in float32."""
    renamed: dict[str, Tensor] = {}
    for path in weights_of(folder):
        for name, tensor in read_tensors(path, "file of weights of diffusers").items():
            for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
                name = re.sub(rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.", name)  # the names of the first releases
            renamed["time_proj.weight" if name == "time_proj.W" else name] = tensor.float()
    return renamed


def digest(folder: Path) -> str | dict[str, str]:
    """Return the SHA-256 of the file of weights, or of each of several by their names."""
    found = {path.name: sha256(path) for path in weights_of(folder)}
    return found if len(found) > 1 else next(iter(found.values()))


def step_of(folder: Path) -> int:
    """Return the training step that an average or the name of its folder tells, else 0."""
    told = read_config(folder / MODEL, "the configuration of a model").get("optimization_step")
    match = re.fullmatch(r"checkpoint-(\d+)", folder.parent.name)
    return told if isinstance(told, int) else int(match[1]) if match else 0
