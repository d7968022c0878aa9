"""Samplers against cost: one row for each sampler, step count and seed, appended as it is finished.

``benchmark.jsonl`` is the record. A row names everything its numbers depend on, so a sweep that was killed goes on
without repeating one, and rows that are of different measurements are never put side by side.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sde_diffusion.errors import InputError
from sde_diffusion.files import to_json, write_atomically

Row = dict[str, Any]

ALIKE = ("metric", "extractor", "reference", "num_samples", "kid_subset", "checkpoint", "dtype")
"""Fields in which rows must agree to be compared."""
BUDGETS = (10, 20, 50, 200)
"""Evaluations at which the best sampler is named."""


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

    def __str__(self) -> str:
        return f"{self.sampler} {self.option}={self.value:g} seed={self.seed}"


def settings(
    options: dict[str, Sequence[str]], steps: Sequence[int], tolerances: Sequence[float], seeds: Sequence[int]
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
    """Append one row, on the disk before this returns."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(to_json(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


def sweep(
    path: Path,
    recorded: Sequence[Row],
    plan: Iterable[Setting],
    key: Row,
    options: Callable[[Setting], str],
    run: Callable[[Setting], Row],
    on_row: Callable[[Row, bool], None],
) -> list[Row]:
    """Run what of the plan is not recorded; returns the rows of the plan in its order.

    Args:
        path: the record, to which new rows are appended.
        recorded: its rows (:func:`read_rows`).
        key: the fields ``ALIKE`` of this sweep; rows of other keys are left alone.
        options: returns the sampler of a run with all its options, as text.
        run: does one run and returns its numbers.
        on_row: called with each row and whether it is new.
    """
    done = {_identity(row): row for row in recorded}
    rows = []
    for setting in plan:
        row: Row = {**key, **vars(setting), "options": options(setting)}
        known = done.get(_identity(row))
        if known is None:
            row |= run(setting)
            append_row(path, row)
        on_row(known or row, known is None)
        rows.append(known or row)
    return rows


def _identity(row: Row) -> str:
    fields = (*ALIKE, "sampler", "option", "value", "seed", "options")
    return json.dumps([row.get(name) for name in fields], sort_keys=True)


def require_alike(rows: Sequence[Row]) -> None:
    """Refuse rows that cannot be compared.

    Raises:
        InputError: names the first field that differs, and two of its values.
    """
    for field in ALIKE:
        values = list(dict.fromkeys(json.dumps(row.get(field)) for row in rows))
        if len(values) > 1:
            raise InputError(
                f"{field}: {values[0]} and {values[1]} cannot be compared; report runs of one {field} at a time"
            )


@dataclass(frozen=True)
class Point:
    """The mean over seeds of one sampler at one setting.

    Attributes:
        sampler, option, value: the setting.
        nfe: evaluations of a sample.
        seconds: time of all samples.
        metric: Fréchet distance.
        error: its standard error: of the seeds, or of the bootstrap where there is one seed.
        seeds: number of seeds.
    """

    sampler: str
    option: str
    value: float
    nfe: float
    seconds: float
    metric: float
    error: float
    seeds: int

    @property
    def label(self) -> str:
        """Name and setting, for a sentence."""
        return f"{self.sampler} with " + (
            f"{self.value:g} steps" if self.option == "num_steps" else f"tolerance {self.value:g}"
        )


def points(rows: Sequence[Row]) -> list[Point]:
    """Return the means over seeds, in the order of the evaluations.

    Raises:
        InputError: if the rows cannot be compared.
    """
    require_alike(rows)
    groups: dict[tuple[str, str, float, str], list[Row]] = {}
    for row in rows:  # one sampler with other options is another
        groups.setdefault((row["sampler"], row["option"], row["value"], row["options"]), []).append(row)
    found = []
    for (sampler, option, value, _), group in groups.items():
        name = group[0]["metric"]
        values = [row["metrics"][name] for row in group]
        sampling = math.sqrt(sum(row["metrics"][f"{name} error"] ** 2 for row in group)) / len(group)
        spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        nfe, seconds = (statistics.fmean(row[field] for row in group) for field in ("nfe", "seconds"))
        found.append(
            Point(sampler, option, value, nfe, seconds, statistics.fmean(values), max(sampling, spread), len(values))
        )
    return sorted(found, key=lambda point: point.nfe)


def recommendation(found: Sequence[Point], metric: str) -> list[str]:
    """Return one sentence for each budget of evaluations, and one for the cheapest that is as good as the best."""
    sentences = []
    for budget in BUDGETS:
        within = [point for point in found if point.nfe <= budget and math.isfinite(point.metric)]
        if within:
            best = min(within, key=lambda point: point.metric)
            sentences.append(
                f"At most {budget} evaluations: {best.label} ({best.nfe:.0f} evaluations), "
                f"{metric} {best.metric:.3g} ± {best.error:.2g}."
            )
    finite = [point for point in found if math.isfinite(point.metric)]
    if finite:
        best = min(finite, key=lambda point: point.metric)
        good = [p for p in finite if p.metric - best.metric <= math.hypot(p.error, best.error)]
        cheap = min(good, key=lambda point: point.nfe)
        sentences.append(
            f"Cheapest within the error of the best ({best.label}, {best.metric:.3g} ± {best.error:.2g}): "
            f"{cheap.label} ({cheap.nfe:.0f} evaluations), {metric} {cheap.metric:.3g} ± {cheap.error:.2g}."
        )
    return sentences


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as comma-separated values, a column a number."""
    flat = [{**{k: v for k, v in row.items() if not isinstance(v, dict)}, **row["metrics"]} for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()
