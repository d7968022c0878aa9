"""Bare weights by our own networks' names: a state dict, alone or beside other things, and the user's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sde_diffusion.errors import InputError, require
from sde_diffusion.files import sha256
from sde_diffusion.networks import NETWORKS
from sde_diffusion.networks.skeleton import skeleton
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained
from sde_diffusion.training.loaders.descriptions import build
from sde_diffusion.training.loaders.diffusers_layout import FILE
from sde_diffusion.training.loaders.tensor_files import PICKLES, problems_of, read_pickle, read_safetensors, states


def _fitted(path: Path, tensors: Mapping[str, Tensor], name: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights in the types of the network, or refuse those that do not fit."""
    if not own.keys() & tensors.keys():
        first = ", ".join([*tensors][:3])
        raise InputError(
            f"{path}: none of its names is one of network {name!r}; they are {first} …, its are {next(iter(own))} …"
        )
    problems = problems_of({key: tuple(tensor.shape) for key, tensor in own.items()}, tensors)
    if problems:
        raise InputError(f"{path}: does not fit network {name!r} as configured: {problems}")
    return {key: tensors[key].to(tensor.dtype) for key, tensor in own.items()}


@LOADERS.register("state_dict")
class StateDict(Loader):
    """A state dict by the names of one of our networks, as .pt, .pth or .safetensors."""

    def recognises(self, path: Path) -> bool:
        return path.is_file() and path.suffix in (*PICKLES, ".safetensors")

    def load(self, path: Path, config: dict[str, Any] | None) -> Pretrained:
        of_folder = FILE.fullmatch(path.name) is None
        require(
            of_folder, "source", str(path), "the folder of diffusers that it lies in, which says what network it is of"
        )
        safe = path.suffix == ".safetensors"
        content: Any = read_safetensors(path) if safe else read_pickle(path, "state dict")
        found = states(content)
        if found is None:
            has = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
            raise InputError(
                f"{path}: expected tensors by their names, alone or under 'model' or 'ema'; it has {has[:200]}"
            )
        if config is None:
            raise InputError(
                f"{path}: {len(found[0])} tensors and no architecture in it; give --config=FILE.py with the data, "
                "network, sde and denoiser that it was trained with"
            )
        shape, name = config["data"]["shape"], config["network"]["name"]
        name = name if name in NETWORKS else "mlp" if len(shape) == 1 else "unet"  # "auto"
        network: nn.Module = build(path, skeleton, name, shape=shape, **config["network"].get(name, {}))
        averaged, raw = (None if w is None else _fitted(path, w, name, network.state_dict()) for w in found)
        step = content.get("step", content.get("global_step"))
        facts = {"format": "state dict", "path": str(path), "sha256": sha256(path)}
        whole = averaged or {}
        return Pretrained(config, whole, raw, step if isinstance(step, int) else 0, facts)
