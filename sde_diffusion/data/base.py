"""What a data set is: two splits in memory, and the maps between its grey levels and model space.

Networks see numbers in [−1, 1]. Pictures are whole grey levels 0 … L−1, and two maps lead from them to model space:

    scale        x = 2 k/(L−1) − 1              levels at both ends of [−1, 1]; what is trained on and drawn
    dequantise   x = 2 (k + u − ½)/(L−1) − 1    u ~ U[0, 1): every level fills the cell around it; what a density is of

The cells, 2/(L−1) wide, are those of DDPM's discrete decoder (Ho et al. 2020, arXiv:2006.11239, Eq. 13), so that a
density, a bound and a sample speak of the same numbers. A density over x gives the probability of a level through the
cell's volume. Continuous data (the toys, float arrays) have no levels; all maps are the identity for them.

References:
    L. Theis, A. van den Oord, M. Bethge, "A note on the evaluation of generative models", 2016, arXiv:1511.01844
    (the likelihood of uniformly dequantised data bounds that of the levels).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.registry import Registry

DATASETS: Registry[Dataset] = Registry("dataset")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples, held in memory on the CPU.

    Args:
        name: the name it is registered under.
        train: uint8 (N, C, H, W) of grey levels 0 … levels−1, or float32 (N, *) with ``levels=None``.
        test: the held-out examples, of the same dtype and event shape.
        levels: number of grey levels L, 2 … 256, or None for continuous data.

    Raises:
        InputError: on an empty split, a wrong dtype, rank or shape, a level out of range, or a NaN or infinity.
    """

    name: str
    train: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    levels: int | None

    def __post_init__(self) -> None:
        if self.levels is not None:
            require_int("levels", self.levels, 2)
            require(self.levels <= 256, "levels", self.levels, "at most 256 grey levels (uint8)")
        for split, data in (("train", self.train), ("test", self.test)):
            self._check_split(f"{self.name}.{split}", data)
        require(
            self.test.shape[1:] == self.train.shape[1:],
            f"{self.name}.test shape",
            tuple(self.test.shape),
            f"(N, {', '.join(map(str, self.shape))}) as in the training split",
        )

    def _check_split(self, name: str, data: Tensor) -> None:
        shape = tuple(data.shape)
        if self.levels is None:
            require(data.dtype == torch.float32, f"{name} dtype", data.dtype, "float32 for data without grey levels")
            require(data.ndim >= 2, f"{name} shape", shape, "(N, d) or of higher rank")
        else:
            require(data.dtype == torch.uint8, f"{name} dtype", data.dtype, "uint8 for data with grey levels")
            require(data.ndim == 4, f"{name} shape", shape, "(N, C, H, W)")
        require(data.numel() > 0, f"{name} shape", shape, "at least one example", "the split is empty")
        if self.levels is None:
            broken = int((~data.isfinite()).sum())
            require(broken == 0, f"{name} NaN or infinite values", broken, "none", "clean the data first")
        else:
            top = int(data.max())
            require(top < self.levels, f"{name} maximum", top, f"grey levels 0 to {self.levels - 1}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape: that of one example, without the batch."""
        return tuple(self.train.shape[1:])

    @property
    def cell(self) -> float:
        """Width 2/(L−1) of a level's cell in model space, dx/dk of both maps; 1 for continuous data."""
        return 1.0 if self.levels is None else 2.0 / (self.levels - 1)

    def _check_event(self, name: str, value: Tensor) -> None:
        expected = f"(B, {', '.join(map(str, self.shape))}), the shape of {self.name}"
        require(tuple(value.shape[1:]) == self.shape, f"{name} shape", tuple(value.shape), expected)

    def _check_levels(self, name: str, value: Tensor) -> None:
        self._check_event(name, value)
        kind = torch.float32 if self.levels is None else torch.uint8
        require(value.dtype == kind, f"{name} dtype", value.dtype, f"{kind}, as the data set holds")

    def _check_model_space(self, name: str, value: Tensor) -> None:
        self._check_event(name, value)
        require(value.is_floating_point(), f"{name} dtype", value.dtype, "floating point, model space")
        broken = int((~value.isfinite()).sum())
        require(broken == 0, f"{name} NaN or infinite values", broken, "none", "the sampler or the network diverged")

    def scale(self, k: Tensor) -> Tensor:
        """Map grey levels to model space: 2 k/(L−1) − 1, uint8 (B, *shape) → float32 in [−1, 1].

        Raises:
            InputError: on another shape or dtype.
        """
        self._check_levels("k", k)
        return k if self.levels is None else k.to(torch.float32) / (self.levels - 1) * 2.0 - 1.0

    def unscale(self, x: Tensor) -> Tensor:
        """Invert :meth:`scale`, rounding to the nearest level and clamping: (B, *shape) → uint8 of the same shape.

        Raises:
            InputError: on another shape, integers, NaN or infinity.
        """
        self._check_model_space("x", x)
        if self.levels is None:
            return x
        return ((x + 1.0) * (0.5 * (self.levels - 1))).round().clamp(0, self.levels - 1).to(torch.uint8)

    def dequantise(self, k: Tensor, u: Tensor) -> Tensor:
        """Spread grey levels over their cells: 2 (k + u − ½)/(L−1) − 1, the uniform dequantisation.

        Args:
            k: uint8 (B, *shape).
            u: floating point, in [0, 1), of k's shape.

        Returns:
            float32 (B, *shape), from −1 − 1/(L−1) to 1 + 1/(L−1).

        Raises:
            InputError: on another shape or dtype.
        """
        self._check_levels("k", k)
        if self.levels is None:
            return k
        require(u.shape == k.shape, "u shape", tuple(u.shape), f"{tuple(k.shape)}, the shape of k")
        require(u.is_floating_point(), "u dtype", u.dtype, "floating point, uniform in [0, 1)")
        return ((k + (u - 0.5)) * (2.0 / (self.levels - 1)) - 1.0).to(torch.float32)

    def to_uint8(self, x: Tensor) -> Tensor:
        """Make 8-bit pictures of model-space images, whatever the number of levels: [−1, 1] → 0 … 255.

        Raises:
            InputError: if the data are not images, or on another shape, integers, NaN or infinity.
        """
        require(
            self.levels is not None, "dataset", self.name, "images", "these data have no picture: plot their points"
        )
        self._check_model_space("x", x)
        return ((x + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def describe(self) -> str:
        """Return one line for people: shape, levels, scaling and the sizes of the splits."""
        if self.levels is None:
            spread = f"mean {self.train.mean():.2f}, standard deviation {self.train.std(correction=0):.2f}"
            what = f"{math.prod(self.shape)}-dimensional vectors" if len(self.shape) == 1 else f"shape {self.shape}"
            scaling = f"continuous, used as they are ({spread})"
        else:
            what = f"images {'×'.join(map(str, self.shape))}"
            scaling = f"{self.levels} grey levels, 0 to {self.levels - 1} scaled to [−1, 1]"
        return f"{self.name}: {what}; {scaling}; {len(self.train)} train, {len(self.test)} test"


def random_split(size: int, num_test: int) -> tuple[Tensor, Tensor]:
    """Split 0 … size−1 into training and test indices (int64), always the same way for the same sizes."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(size))
    return order[: size - num_test], order[size - num_test :]


def count_test(size: int, test_fraction: float, source: str) -> int:
    """Return how many of ``size`` examples are held out: the fraction, rounded, but at least one on either side.

    Args:
        size: number of examples.
        test_fraction: share to hold out.
        source: the file or folder that they come from, for the message.

    Raises:
        InputError: unless 0 < ``test_fraction`` < 1 and there are two examples or more.
    """
    require_float("test_fraction", test_fraction, 0.0, 1.0, open_low=True)
    require(test_fraction < 1.0, "test_fraction", test_fraction, "less than 1", "some examples must be trained on")
    require(size >= 2, source, f"{size} examples", "at least 2, one to train on and one to hold out")
    return min(max(1, round(test_fraction * size)), size - 1)


@functools.lru_cache(maxsize=4)
def _epoch_order(size: int, seed: int, epoch: int) -> Tensor:
    """Return the permutation of one epoch, (size,) int64; cached, so callers must not write to it."""
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,)))
    return torch.from_numpy(generator.permutation(size))


def train_batch(train: Tensor, batch_size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Return the training batch of one step, a pure function of (seed, step): a killed run resumes exactly.

    The epochs' permutations are laid end to end and cut into batches, so every epoch sees each example exactly once:
    nothing is dropped, and a batch may span epochs or exceed the data set.

    Args:
        train: (N, *), on any device.
        batch_size: at least 1; the steps must all have the same.
        seed: any whole number ≥ 0.
        step: number of the step, from 0.

    Returns:
        The examples (batch_size, *) and their indices (batch_size,), int64 on the CPU.

    Raises:
        InputError: on an empty data set or numbers out of range.
    """
    require_int("batch_size", batch_size, 1)
    require_int("seed", seed, 0)
    require_int("step", step, 0)
    size = len(train)
    require(size > 0, "train shape", tuple(train.shape), "at least one example")
    position, end = step * batch_size, (step + 1) * batch_size
    parts = []
    while position < end:
        epoch, offset = divmod(position, size)
        parts.append(_epoch_order(size, seed, epoch)[offset : offset + end - position])
        position += len(parts[-1])
    indices = torch.cat(parts)
    return train.index_select(0, indices.to(train.device)), indices  # seven times as fast as train[indices]
