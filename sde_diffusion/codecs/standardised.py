"""Zero mean and unit variance: what makes vectors, series and volumes of any units fit for a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sde_diffusion.codecs.base import CODECS, Codec, check_model_space
from sde_diffusion.data import Dataset
from sde_diffusion.errors import InputError, require, require_float
from sde_diffusion.noise import NoiseStream

CONSTANT = 1e-6
"""A standard deviation below this share of a channel's size is that of rounding errors."""


@CODECS.register("standardised")
@dataclass(frozen=True)
class Standardised(Codec):
    """z = (x − mean)/std, for each channel; the columns of vectors are channels.

    Args:
        mean: mean of each channel over the training split and all other components, (C,).
        std: standard deviation likewise, > 0.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            require(isinstance(values, tuple), name, values, "a tuple of numbers, one a channel")
            for value in values:
                require_float(name, value, *((0.0,) if name == "std" else ()), open_low=name == "std")
        sizes = len(self.mean), len(self.std)
        expected = "as many means as standard deviations, one a channel"
        require(sizes[0] == sizes[1] > 0, "number of means and of standard deviations", sizes, expected)

    @classmethod
    def of(cls, dataset: Dataset, **options: Any) -> Self:
        expected, remedy = f"a codec for {dataset.name}, which has grey levels", "take grey_levels"
        require(dataset.levels is None, "codec.name", "standardised", expected, remedy)
        channels = dataset.train.double().transpose(0, 1).flatten(1)  # (C, N · rest)
        mean, std = channels.mean(dim=1), channels.std(dim=1, correction=0)
        size = channels.abs().amax(dim=1)
        constant = (std <= CONSTANT * size).nonzero().flatten().tolist()
        if constant:
            names = dataset.columns or range(len(mean))
            told = ", ".join(f"{names[i]} (always {float(mean[i]):g})" for i in constant[:10])
            what = "column" if dataset.train.ndim == 2 else "channel"
            raise InputError(
                f"{dataset.name}: {what} {told}{' …' if len(constant) > 10 else ''}: constant, so that it cannot be "
                "standardised; leave it out of the data"
            )
        return cls(tuple(mean.tolist()), tuple(std.tolist()), **options)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and std, float64 (1, C, 1, …), for data ``x`` (B, C, *)."""
        channels = len(self.mean)
        ok = x.ndim >= 2 and x.shape[1] == channels
        require(ok, "codec", f"statistics of {channels} channels", f"those of data of shape {tuple(x.shape)}")
        shape = (1, -1, *[1] * (x.ndim - 2))
        mean, std = (
            torch.tensor(v, dtype=torch.float64, device=x.device).reshape(shape) for v in (self.mean, self.std)
        )
        return mean, std

    def encode(self, x: Tensor, noise: NoiseStream | None = None) -> tuple[Tensor, Tensor]:
        require(x.is_floating_point(), "x dtype", x.dtype, "floating point")
        mean, std = self._statistics(x)
        weight = -sum(map(math.log, self.std)) * (x[0, 0].numel() if len(x) else 1)
        return ((x.double() - mean) / std).to(torch.float32), torch.full((len(x),), weight, dtype=torch.float64)

    def decode(self, z: Tensor) -> Tensor:
        check_model_space(z)
        mean, std = self._statistics(z)
        return (z.double() * std + mean).to(torch.float32)
