"""What a person hands over in Python, a data set, an SDE, a network, in the words of a configuration."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.codecs import Codec, describe_codec
from sde_diffusion.data import Dataset, random_split
from sde_diffusion.errors import require
from sde_diffusion.sdes import SDE, SDES, DDPMChain
from sde_diffusion.training.settings import GIVEN

HELD_OUT = 0.1
"""Share of given examples that are held out."""


def as_dataset(data: Dataset | Tensor | np.ndarray) -> Dataset:
    """Return given examples as a data set: uint8 (N, C, H, W) of 256 grey levels, or floats (N, *).

    A tenth of the examples, chosen always the same way, are held out.

    Raises:
        InputError: on another type, dtype or shape, or fewer than two examples.
    """
    if isinstance(data, Dataset):
        return data
    require(isinstance(data, (Tensor, np.ndarray)), "data", type(data).__name__, "a Dataset, a tensor or an array")
    examples = torch.as_tensor(data).detach().cpu()
    examples = examples.float() if examples.is_floating_point() else examples
    require(len(examples) > 1, "data", tuple(examples.shape), "at least two examples (N, *)")
    train, test = random_split(len(examples), max(1, round(HELD_OUT * len(examples))))
    levels = 256 if examples.dtype == torch.uint8 else None
    return Dataset(GIVEN, examples[train], examples[test], levels)


def describe_data(dataset: Dataset, codec: Codec) -> dict[str, Any]:
    """Return what a run stores of its data: shape, levels, codec, conditions, names of classes and columns."""
    return {
        "shape": list(dataset.shape),
        "levels": dataset.levels,
        "codec": describe_codec(codec),
        "conditions": {name: list(values.shape[1:]) for name, (values, _) in dataset.conditions.items()},
        "class_names": list(dataset.class_names),
        "columns": list(dataset.columns),
    }


def describe_sde(sde: SDE) -> dict[str, Any]:
    """Return ``config.sde`` of an SDE, by which it is built again; its name is "given" if it cannot be."""
    if isinstance(sde, DDPMChain):
        return {"name": "ddpm", "ddpm": {"betas": tuple(sde.betas.tolist())}}
    for name in SDES:
        if SDES[name] is type(sde) and is_dataclass(sde):
            return {"name": name, name: asdict(sde)}
    return {"name": GIVEN}
