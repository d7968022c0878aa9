"""Samplers against cost: one row for each sampler, step count and seed, appended as it is finished.

``benchmark.jsonl`` is the record. A row names everything its numbers depend on, so a sweep that was killed goes on
without repeating one, and rows that are of different measurements are never put side by side.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sde_diffusion.errors import InputError
from sde_diffusion.files import to_json, write_atomically

Row = dict[str, Any]

ALIKE = ("metric", "extractor", "reference", "num_samples", "kid_subset", "checkpoint", "dtype")
"""Fields in which rows must agree to be compared."""
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


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a record; a torn last line, the trace of a kill, is taken off the file.

    Raises:
        InputError: if another line is not a row; names it.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not _is_row(lines[-1]):
        lines.pop()
        write_atomically(path, lambda p: p.write_text("".join(lines), encoding="utf-8"))
    for number, line in enumerate(lines, start=1):
        if not _is_row(line):
            raise InputError(
                f"{path}: line {number} is not a row of a sweep; repair or remove it: {line.strip()[:60]!r}"
            )
    return [json.loads(line) for line in lines]


def _is_row(line: str) -> bool:
    try:
        return line.endswith("\n") and {"sampler", "seed", "nfe"} <= json.loads(line).keys()
    except (ValueError, AttributeError):
        return False


def append_row(path: Path, row: Row) -> None:
    """Append one row, on the disk before this returns; of a row that does not fit there nothing is left."""
    rest = (to_json(row) + "\n").encode()
    with open(path, "ab", buffering=0) as file:
        start = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(start)
            raise


def sweep(
    path: Path,
    recorded: Sequence[Row],
    plan: Iterable[Setting],
    key: Row,
    options: Callable[[Setting], Row],
    run: Callable[[Setting, str], Row],
    on_row: Callable[[Row, bool], None],
) -> list[Row]:
    """Run what of the plan is not recorded; returns the rows of the plan in its order.

    Args:
        path: the record, to which new rows are appended.
        recorded: its rows (:func:`read_rows`).
        key: the fields ``ALIKE`` of this sweep; rows of other keys are left alone.
        options: returns the other options of a run's sampler.
        run: does one run and returns its numbers; is given a name for its files, which is that of no other run.
        on_row: called with each row and whether it is new.
    """
    done = {_identity(row): row for row in recorded}
    rows = []
    for setting in plan:
        row: Row = {**key, **vars(setting), "options": options(setting)}
        known = done.get(_identity(row))
        if known is None:
            row |= run(setting, f"{setting.sampler}_{setting.value:g}_seed{setting.seed}_{_digest(row)}")
            append_row(path, row)
        on_row(known or row, known is None)
        rows.append(known or row)
    return rows


def _digest(row: Row) -> str:
    return hashlib.sha256(_identity(row).encode()).hexdigest()[:8]


def _identity(row: Row) -> str:
    fields = (*ALIKE, "sampler", "option", "value", "seed", "options")
    return json.dumps([row.get(name) for name in fields], sort_keys=True)
