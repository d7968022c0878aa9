"""Data that are in model space already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sde_diffusion.codecs.base import CODECS, Codec, check_model_space, unweighted
from sde_diffusion.data import Dataset
from sde_diffusion.errors import require
from sde_diffusion.noise import NoiseStream


@CODECS.register("identity")
@dataclass(frozen=True)
class Identity(Codec):
    """z = x, for continuous data of about zero mean and unit variance."""

    @classmethod
    def of(cls, dataset: Dataset, **options: Any) -> Self:
        expected, remedy = f"a codec for {dataset.name}, which has grey levels", "take grey_levels"
        require(dataset.levels is None, "codec.name", "identity", expected, remedy)
        return cls(**options)

    def encode(self, x: Tensor, noise: NoiseStream | None = None) -> tuple[Tensor, Tensor]:
        require(x.is_floating_point(), "x dtype", x.dtype, "floating point")
        return x.to(torch.float32), unweighted(x)

    def decode(self, z: Tensor) -> Tensor:
        check_model_space(z)
        return z.to(torch.float32)
