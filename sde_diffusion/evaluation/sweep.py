"""Samplers against cost: one row for each sampler, step count and seed, appended as it is finished.

``benchmark.jsonl`` is the record. A row names everything its numbers depend on, so a sweep that was killed goes on
without repeating one, and rows that are of different measurements are never put side by side. What is computed of a
row that takes long is kept batch by batch until the row is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.errors import require, require_plain_name
from sde_diffusion.evaluation.metrics import Features, join
from sde_diffusion.files import to_json, write_atomically
from sde_diffusion.reading import read_arrays
from sde_diffusion.records import as_line, drop_torn_line, read_lines
from sde_diffusion.terminal import notice

Row = dict[str, Any]

ALIKE = ("metric", "extractor", "reference", "num_samples", "kid_subset", "checkpoint", "dtype", "estimator")
"""Fields in which rows must agree to be compared."""
ESTIMATOR = 2
"""Version of how metrics and their errors are computed; rows of 0.1.0, whose errors are the bootstrap's, have none."""
RECORD = "benchmark.jsonl"
PICTURES, TRAJECTORY = "benchmark", "_trajectory"
"""Folder of the pictures of a sweep, and what the name of a strip of the reverse process ends in."""


@dataclass(frozen=True)
class Setting:
    """One run of one sampler.

    Attributes:
        sampler: its name.
        option: "num_steps", or "tolerance" of a sampler that chooses its own steps.
        value: of that option.
        seed: of the noise, the same for all samplers.
    """

    sampler: str
    option: str
    value: float
    seed: int


def settings(
    options: dict[str, Sequence[str]], steps: Sequence[float], tolerances: Sequence[float], seeds: Sequence[int]
) -> list[Setting]:
    """Return all runs of a sweep, the cheap ones of all samplers first.

    Args:
        options: names of the options of each sampler.
    """
    found = []
    for seed in seeds:
        for name, known in options.items():
            values: Sequence[float] = steps if "num_steps" in known else tolerances
            option = "num_steps" if "num_steps" in known else "tolerance"
            found += [(i, Setting(name, option, value, seed)) for i, value in enumerate(values)]
    return [setting for _, setting in sorted(found, key=lambda pair: pair[0])]


_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("metric", "extractor", "reference", "checkpoint", "dtype", "sampler", "option"), str),
    **dict.fromkeys(("num_samples", "kid_subset", "seed"), int),
    **dict.fromkeys(("value", "nfe", "seconds"), (int, float)),
    **dict.fromkeys(("options", "metrics", "provenance"), dict),
    "solver_error": (int, float, type(None)),
}
"""What every row has."""


def _check(row: Row) -> None:
    """Refuse a row that lacks something, or whose names could lead out of the folder that its files lie in."""
    for field, kinds in _FIELDS.items():
        ok = field in row and isinstance(row[field], kinds) and not isinstance(row[field], bool)
        require(ok, field, row.get(field), "the field of a row")
    for field in ("sampler", "picture"):
        if field in row:
            require_plain_name(field, row[field])
    for name in (row["metric"], f"{row['metric']} error"):
        require(name in row["metrics"], "metrics", sorted(row["metrics"]), f"{name!r} among them")


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a record; of doubled ones, which two sweeps at once would leave, the first.

    Raises:
        InputError: if a line is not a row; names it.
    """
    rows = read_lines(path, "a row of a sweep", _check)
    single = {_identity(row): row for row in reversed(rows)}
    if len(single) < len(rows):
        notice(f"{path}: {len(rows) - len(single)} of its {len(rows)} rows repeat another and are left out")
    return list(reversed(single.values()))


def comparable(rows: Iterable[Row], row: Row) -> list[Row]:
    """Return the rows that can be compared with one of them."""
    return [other for other in rows if all(other.get(field) == row.get(field) for field in ALIKE)]


def append_row(path: Path, row: Row) -> None:
    """Append one row, on the disk before this returns; of a row that does not fit there nothing is left."""
    rest = as_line(row).encode()
    with open(path, "ab", buffering=0) as file:
        start = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(start)
            raise


@dataclass(frozen=True)
class Batch:
    """What a row needs of a batch of its samples.

    Attributes:
        features: what the feature network makes of them.
        x: the first samples of the row, as many as are wanted and lie in this batch.
        nfe: counted evaluations of a sample.
        seconds: of sampling.
        metric_seconds: of the feature network.
    """

    features: Features
    x: Tensor
    nfe: float
    seconds: float
    metric_seconds: float


def join_batches(parts: Sequence[Batch]) -> Batch:
    """Return several batches as one; ``nfe`` is the mean over their samples."""
    counts = [len(part.features.features) for part in parts]
    return Batch(
        features=join([part.features for part in parts]),
        x=torch.cat([part.x for part in parts]),
        nfe=sum(part.nfe * count for part, count in zip(parts, counts, strict=True)) / sum(counts),
        seconds=sum(part.seconds for part in parts),
        metric_seconds=sum(part.metric_seconds for part in parts),
    )


def batches(folder: Path, num_samples: int, batch_size: int, compute: Callable[[int, int], Batch]) -> Iterator[Batch]:
    """Yield the batches of a row; all but the last, with which the row is finished, are kept in ``folder``.

    Args:
        folder: of this row alone; batches that are there are not computed again.
        compute: returns the batch of samples ``first`` … ``last − 1``.
    """
    for first in range(0, num_samples, batch_size):
        last = min(first + batch_size, num_samples)
        path = folder / f"{first}-{last}.npz"
        if path.exists():
            yield _read_batch(path, last - first)
            continue
        batch = compute(first, last)
        if last < num_samples:
            _write_batch(path, batch)
        yield batch


_NUMBERS = ("nfe", "seconds", "metric_seconds")


def _read_batch(path: Path, count: int) -> Batch:
    kept = read_arrays("batch", path, "delete it to draw it again")
    missing = {"x", "features", *_NUMBERS} - kept.keys()
    counts = {len(kept[name]) for name in ("features", "logits") if name in kept and kept[name].ndim == 2}
    ok = not missing and counts == {count} and kept["x"].ndim > 1 and len(kept["x"]) <= count
    ok = ok and all(kept[name].shape == () for name in _NUMBERS)
    ok = ok and all(kept[name].dtype.kind == "f" for name in kept)
    require(ok, str(path), sorted(kept), f"a batch of {count} samples", "delete it to draw them again")
    return Batch(
        Features.of_arrays(kept), torch.from_numpy(kept["x"]), **{name: float(kept[name]) for name in _NUMBERS}
    )


def _write_batch(path: Path, batch: Batch) -> None:
    numbers: dict[str, Any] = {name: getattr(batch, name) for name in _NUMBERS}
    write_atomically(path, lambda p: np.savez(p, x=batch.x.numpy(), **batch.features.arrays(), **numbers))


def sweep(
    path: Path,
    recorded: Sequence[Row],
    plan: Iterable[Setting],
    key: Row,
    options: Callable[[Setting], Row],
    measure: Callable[[Setting, str], Row],
    on_row: Callable[[Row, bool], None],
    metrics: Sequence[str] = (),
) -> list[Row]:
    """Run what of the plan is not recorded; returns the rows of the plan in its order.

    Args:
        path: the record, to which new rows are appended.
        recorded: its rows (:func:`read_rows`).
        key: the fields ``ALIKE`` of this sweep; rows of other keys are left alone.
        options: returns the other options of a run's sampler.
        measure: draws one row and returns its numbers; is given a name for its files, which is that of no other run.
        on_row: called with each row and whether it is new.
        metrics: what a recorded row must have measured; one that has not is measured anew.
    """
    drop_torn_line(path)
    done = {_identity(row): row for row in recorded}
    rows = []
    for setting in plan:
        row: Row = {**key, **vars(setting), "options": options(setting)}
        known = done.get(_identity(row))
        if known is not None and not set(metrics) <= known["metrics"].keys():
            _forget(path, known)
            known = None
        if known is None:
            row |= measure(setting, picture_of(row))
            row = json.loads(to_json(row))  # as it will be read: what is not stated is null
            append_row(path, row)
        on_row(known or row, known is None)
        rows.append(known or row)
    return rows


def _forget(path: Path, row: Row) -> None:
    """Take a row out of the record."""
    kept = [other for other in read_rows(path) if _identity(other) != _identity(row)]
    write_atomically(path, lambda p: p.write_text("".join(map(as_line, kept)), encoding="utf-8"))


_OF = (*ALIKE, "sampler", "option", "value", "seed")
"""Fields that tell what a row is of, besides its options."""


def picture_of(row: Row) -> str:
    """Return the name of a row's files, which is that of no other row; it follows from what the row is of."""
    # Rows of version 0.1.0 have no estimator, nor has the name of their files.
    text = json.dumps(
        [row.get(name) for name in (*_OF, "options") if name in row or name != "estimator"], sort_keys=True
    )
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{row['sampler']}_{row['value']:g}_seed{row['seed']}_{digest}"


def _identity(row: Row) -> str:
    # Rows of version 0.1.0 name the bound that there was on x₀ in every sampler's options, 0 for none.
    options = {name: value for name, value in row.get("options", {}).items() if name != "clip" or value}
    return json.dumps([*(row.get(name) for name in _OF), options], sort_keys=True)
