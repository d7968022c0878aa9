"""What a data set is: two splits of examples in memory, and what is known of each example; nothing of diffusion."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.registry import Registry

DATASETS: Registry[Dataset] = Registry("dataset")


CLASSES = "classes"
"""The condition that is the number of an example's class."""
_NOUNS = {1: "vectors", 2: "series", 4: "volumes"}
_TAKEN = ("x", "t")
"""What a network's input and its time are called: no condition can have these names."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Some examples and what is known of each.

    Args:
        x: the examples, (N, *).
        conditions: by name, (N, …) each; "classes" are int64 (N,).

    Raises:
        InputError: if a condition is not one per example.
    """

    x: Tensor = field(repr=False)
    conditions: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, value in self.conditions.items():
            _require_length(f"condition {name!r}", value, len(self.x))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, which: slice | Tensor) -> Examples:
        """Return the examples of a slice, or those of the indices (B,), int64 from 0, with what is known of them.

        Raises:
            InputError: if ``which`` is neither.
            IndexError: if an index is out of range.
        """
        if isinstance(which, slice):
            return Examples(self.x[which], {name: value[which] for name, value in self.conditions.items()})
        fits = isinstance(which, Tensor) and which.ndim == 1 and which.dtype == torch.int64
        given = f"{which.dtype} {tuple(which.shape)}" if isinstance(which, Tensor) else type(which).__name__
        require(fits, "which", given, "a slice, or indices (B,) in an int64 tensor")

        def pick(value: Tensor) -> Tensor:
            return value.index_select(0, which.to(value.device))

        return Examples(pick(self.x), {name: pick(value) for name, value in self.conditions.items()})


def _require_length(name: str, value: Tensor, size: int) -> None:
    length = len(value) if value.ndim else None
    require(length == size, f"{name} length", length, f"{size}, one for each example")


def require_data(name: str, data: Tensor, levels: int | None, columns: tuple[str, ...] = ()) -> None:
    """Require examples that can be used, uint8 (N, C, H, W) with ``levels`` and finite float32 (N, *) without.

    Args:
        name: what they are called in a message.
        data: the examples.
        levels: number of grey levels, or None.
        columns: names of the components of vectors, or none.

    Raises:
        InputError: on no examples, a wrong dtype, rank or number of columns, a level out of range, a NaN or infinity.
    """
    shape = tuple(data.shape)
    if levels is None:
        require(data.dtype == torch.float32, f"{name} dtype", data.dtype, "float32 for data without grey levels")
        require(data.ndim >= 2, f"{name} shape", shape, "(N, d) or of higher rank")
    else:
        require(data.dtype == torch.uint8, f"{name} dtype", data.dtype, "uint8 for data with grey levels")
        require(data.ndim == 4, f"{name} shape", shape, "(N, C, H, W)")
    require(data.numel() > 0, f"{name} shape", shape, "at least one example", "the split is empty")
    if columns:
        components = f"{shape[1]}, one for each component" if data.ndim == 2 else "none: only vectors have columns"
        require(shape[1:] == (len(columns),), f"{name} number of columns' names", len(columns), components)
    if levels is None:
        _require_finite(name, data, columns)
    else:
        top = int(data.max())
        require(top < levels, f"{name} maximum", top, f"grey levels 0 to {levels - 1}")


def _require_finite(name: str, data: Tensor, columns: tuple[str, ...]) -> None:
    """Refuse NaN and infinity in (N, C, *), naming the first column (of vectors) or channel that has them."""
    counts = (~data.isfinite()).sum(dim=(0, *range(2, data.ndim)))
    total, first = int(counts.sum()), int((counts > 0).int().argmax())
    kind = "column" if data.ndim == 2 else "channel"
    which = repr(columns[first]) if columns else f"number {first} (counted from 0)"
    remedy = f"the first {kind} that has them is {which}, with {int(counts[first])}; clean the data first"
    require(total == 0, f"{name} NaN or infinite values", total, "none", remedy)


def require_conditions(
    name: str, size: int, conditions: Mapping[str, Tensor], class_names: tuple[str, ...] = ()
) -> None:
    """Require one finite value of each condition for each of ``size`` examples, and classes that are whole numbers.

    Args:
        name: what the examples are called in a message.
        size: number of examples.
        conditions: by name, (N, …) each.
        class_names: names of the classes 0, 1, …, or none.

    Raises:
        InputError: on a name that no argument can have, another length, a NaN or infinity, or classes that are not
            int64 (N,), from 0 and below the number of names.
    """
    for key, value in conditions.items():
        usable = key.isidentifier() and key not in _TAKEN
        require(usable, f"{name} condition", key, f"a name like a variable's, and none of {', '.join(_TAKEN)}")
        _require_length(f"{name} {key}", value, size)
        if key == CLASSES:
            _require_classes(f"{name} {key}", value, class_names)
        else:
            broken = int((~value.isfinite()).sum())
            require(broken == 0, f"{name} {key} NaN or infinite values", broken, "none", "clean the data first")


def _require_classes(name: str, classes: Tensor, class_names: tuple[str, ...]) -> None:
    require(classes.dtype == torch.int64, f"{name} dtype", classes.dtype, "int64, whole numbers from 0")
    require(classes.ndim == 1, f"{name} shape", tuple(classes.shape), f"({len(classes)},), one class for each example")
    low, high = (int(classes.min()), int(classes.max())) if len(classes) else (0, -1)
    require(low >= 0, f"{name} minimum", low, "whole numbers from 0")
    known = f"below {len(class_names)}, the number of class names"
    require(not class_names or high < len(class_names), f"{name} maximum", high, known)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and test examples, held in memory on the CPU.

    Args:
        name: the name it is registered under.
        train: uint8 (N, C, H, W) of grey levels 0 … levels−1, or float32 (N, *) with ``levels=None``: vectors (N, d),
            series (N, C, T), volumes (N, C, D, H, W) or whatever else.
        test: the held-out examples, of the same dtype and event shape.
        levels: number of grey levels L, 2 … 256, or None for continuous data.
        conditions: what is known of each example, by name: of the training and of the test examples, (N, …) each, of
            one dtype and shape. "classes" are int64 (N,), from 0.
        class_names: names of the classes 0, 1, …, or none.
        columns: names of the components of vectors, or none.
        note: how the examples were made of files, for :meth:`describe`.

    Raises:
        InputError: on an empty split, a wrong dtype, rank or shape, a level out of range, a NaN or infinity, a
            condition that is not one per example, classes that are not whole numbers ≥ 0 or have no name, or names of
            classes or columns that are not there.
    """

    name: str
    train: Tensor = field(repr=False)
    test: Tensor = field(repr=False)
    levels: int | None
    conditions: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    class_names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        if self.levels is not None:
            require_int("levels", self.levels, 2)
            require(self.levels <= 256, "levels", self.levels, "at most 256 grey levels (uint8)")
        for split, data in (("train", self.train), ("test", self.test)):
            require_data(f"{self.name}.{split}", data, self.levels, self.columns)
        require(
            self.test.shape[1:] == self.train.shape[1:],
            f"{self.name}.test shape",
            tuple(self.test.shape),
            f"(N, {', '.join(map(str, self.shape))}) as in the training split",
        )
        self._check_conditions()

    def _check_conditions(self) -> None:
        for i, (split, data) in enumerate((("train", self.train), ("test", self.test))):
            known = {name: pair[i] for name, pair in self.conditions.items()}
            require_conditions(f"{self.name}.{split}", len(data), known, self.class_names)
        for name, (train, test) in self.conditions.items():
            alike = test.shape[1:] == train.shape[1:] and test.dtype == train.dtype
            expected = f"(N, …) like {tuple(train.shape)} and {train.dtype} of the training split"
            require(alike, f"{self.name}.test {name} shape and dtype", (*test.shape, test.dtype), expected)
        named = not self.class_names or CLASSES in self.conditions
        require(named, f"{self.name} class_names", self.class_names, "none, as there are no classes")

    def split(self, split: str) -> Examples:
        """Return the examples of "train" or "test" and what is known of each.

        Raises:
            InputError: on another name.
        """
        require(split in ("train", "test"), "split", split, "'train' or 'test'")
        i = ("train", "test").index(split)
        return Examples((self.train, self.test)[i], {name: pair[i] for name, pair in self.conditions.items()})

    @property
    def num_classes(self) -> int:
        """Number of class names; without names 1 + the largest class of both splits; 0 without classes."""
        if CLASSES not in self.conditions:
            return 0
        return len(self.class_names) or 1 + max(int(classes.max()) for classes in self.conditions[CLASSES])

    @property
    def noun(self) -> str:
        """What the examples are for people, in the plural."""
        return _NOUNS.get(len(self.shape), "examples") if self.levels is None else "images"

    @property
    def shape(self) -> tuple[int, ...]:
        """Event shape: that of one example, without the batch."""
        return tuple(self.train.shape[1:])

    def describe(self) -> str:
        """Return one line for people: shape, levels or moments, classes, conditions, note and sizes of the splits."""
        size = "×".join(map(str, self.shape))
        what = f"{size}-dimensional vectors" if self.noun == "vectors" else f"{self.noun} {size}"
        parts = [f"{self.name}: {what}"]
        if self.levels is None:
            parts.append(f"continuous, {self._spread()}")
        else:
            parts.append(f"{self.levels} grey levels")
        if self.num_classes:
            parts.append(f"{self.num_classes} class{'es' if self.num_classes > 1 else ''}")
        others = [name for name in self.conditions if name != CLASSES]
        parts += [f"condition{'s' if len(others) > 1 else ''} {', '.join(others)}"] if others else []
        parts += [self.note] if self.note else []
        return "; ".join([*parts, f"{len(self.train)} train, {len(self.test)} test"])

    def _spread(self) -> str:
        """Tell mean and standard deviation of the training split, or their ranges over several columns or channels."""
        deviations, means = torch.std_mean(self.train, dim=(0, *range(2, self.train.ndim)), correction=0)

        def text(value: Tensor) -> str:
            return f"{float(value):.3g}".replace("-", "−")

        if len(means) == 1:
            return f"mean {text(means[0])}, standard deviation {text(deviations[0])}"
        ranges = [f"{text(values.min())} to {text(values.max())}" for values in (means, deviations)]
        return f"means {ranges[0]}, standard deviations {ranges[1]}"


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
