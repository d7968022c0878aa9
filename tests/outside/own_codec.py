"""A codec of one's own: the logarithm of positive data, standardised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sde_diffusion.codecs import CODECS, Codec
from sde_diffusion.codecs.base import check_model_space
from sde_diffusion.data import Dataset
from sde_diffusion.errors import InputError, require
from sde_diffusion.noise import NoiseStream


@CODECS.register("own_codec")
@dataclass(frozen=True)
class Logarithm(Codec):
    """z = (log x − mean)/std for vectors x > 0, with the log-weight −Σ log x − Σ log std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    columns: tuple[str, ...]

    @classmethod
    def of(cls, dataset: Dataset, **options: Any) -> Self:
        require(dataset.train.ndim == 2, "codec.name", "own_codec", f"a codec for {dataset.noun}", "take another")
        names = dataset.columns or tuple(map(str, range(dataset.shape[0])))
        _require_positive(dataset.train, names)
        std, mean = torch.std_mean(dataset.train.double().log(), dim=0, correction=0)
        return cls(tuple(mean.tolist()), tuple(std.tolist()), names, **options)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.mean, dtype=torch.float64), torch.tensor(self.std, dtype=torch.float64)

    def encode(self, x: Tensor, noise: NoiseStream | None = None) -> tuple[Tensor, Tensor]:
        _require_positive(x, self.columns)
        (mean, std), log_x = self._statistics(), x.double().log()
        return ((log_x - mean) / std).float(), -log_x.sum(dim=1) - sum(map(math.log, self.std))

    def decode(self, z: Tensor) -> Tensor:
        check_model_space(z)
        mean, std = self._statistics()
        return (z.double() * std + mean).exp().float()


def _require_positive(x: Tensor, names: tuple[str, ...]) -> None:
    for i, name in enumerate(names):
        low = float(x[:, i].min())
        if low <= 0.0:
            raise InputError(f"column {name}: its least value is {low:g}; expected numbers above 0; take standardised")
