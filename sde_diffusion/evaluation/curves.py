"""What the rows of a sweep say: means over seeds with their errors, curves of samplers, the recommendation."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sde_diffusion.errors import InputError
from sde_diffusion.evaluation.sweep import ALIKE, Row
from sde_diffusion.evaluation.uncertainty import QUANTILE, plus_minus

BUDGETS = (10, 20, 50, 200)
"""Evaluations at which the best sampler is named."""
SOLVER_ERROR = "solver error"
"""Mean squared distance to the exact probability flow from the same noise."""


def require_alike(rows: Sequence[Row], fields: Sequence[str] = ALIKE) -> None:
    """Refuse rows that cannot be compared.

    Raises:
        InputError: names the first field that differs, and two of its values.
    """
    for field in fields:
        values = list(dict.fromkeys(json.dumps(row.get(field)) for row in rows))
        if len(values) > 1:
            raise InputError(
                f"{field}: {values[0]} and {values[1]} cannot be compared; report runs of one {field} at a time"
            )


def measurements(rows: Sequence[Row]) -> list[list[Row]]:
    """Return rows in groups that can be compared, the one last measured first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        group = groups.pop(key := json.dumps([row.get(field) for field in ALIKE]), [])
        groups[key] = [*group, row]
    return list(reversed(groups.values()))


def setting_text(option: str, value: float) -> str:
    """Return a setting as words: "10 steps" or "tolerance 0.01"."""
    return f"{value:g} steps" if option == "num_steps" else f"tolerance {value:g}"


@dataclass(frozen=True)
class Point:
    """The mean over seeds of one sampler at one setting.

    Attributes:
        curve: the sampler, with what tells it from others of its name.
        option, value: the setting.
        nfe: evaluations of a sample.
        seconds: time of all samples.
        metric: what was measured.
        error: its standard error: of the seeds, or of the samples where that is larger; NaN where none is known.
        rows: what the means are of.
    """

    curve: str
    option: str
    value: float
    nfe: float
    seconds: float
    metric: float
    error: float
    rows: tuple[Row, ...]

    @property
    def setting(self) -> str:
        """Steps or tolerance, for a sentence."""
        return setting_text(self.option, self.value)

    @property
    def text(self) -> str:
        """The metric and its 95 % interval."""
        return plus_minus(self.metric, self.error, ".3g")

    @property
    def told(self) -> str:
        """The same, and what the interval is, for a sentence."""
        return self.text if math.isnan(self.error) else f"{self.text} (95 %)"

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval; of no width where no error is known."""
        return self.metric - QUANTILE * self.known, self.metric + QUANTILE * self.known

    @property
    def known(self) -> float:
        """The standard error; 0 where none is known."""
        return 0.0 if math.isnan(self.error) else self.error


def curve_names(rows: Sequence[Row]) -> list[str]:
    """Return the curve of each row: its sampler, then its run and its options where these tell two curves apart."""
    runs = {row.get("run", "") for row in rows}
    variants: dict[str, list[Row]] = {}
    for row in rows:
        variants.setdefault(row["sampler"], []).append(row)

    def name(row: Row) -> str:
        sampler: str = row["sampler"]
        others = [other["options"] for other in variants[sampler]]
        differing = [key for key, value in row["options"].items() if any(other.get(key) != value for other in others)]
        options = ", ".join(f"{key}={row['options'][key]}" for key in differing)
        run = f"{row['run']}: " if len(runs) > 1 else ""
        return run + sampler + (f" ({options})" if options else "")

    return [name(row) for row in rows]


def metric_names(rows: Sequence[Row]) -> list[str]:
    """Return what was measured in every row, the Fréchet distance first."""
    return [m for m in rows[0]["metrics"] if not m.endswith(" error") and all(m in row["metrics"] for row in rows)]


def points(rows: Sequence[Row], metric: str = "") -> list[Point]:
    """Return the means over seeds, in the order of the evaluations.

    Args:
        rows: of one measurement, and perhaps of several runs (field "run").
        metric: one of :func:`metric_names` or ``SOLVER_ERROR``, whose rows without one are left out; by default the
            Fréchet distance.

    Raises:
        InputError: if the rows cannot be compared.
    """
    several = len({row.get("run") for row in rows}) > 1
    require_alike(rows, [field for field in ALIKE if not (several and field == "checkpoint")])
    metric = metric or rows[0]["metric"]
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for name, row in zip(curve_names(rows), rows, strict=True):
        if metric != SOLVER_ERROR or row["solver_error"] is not None:
            groups.setdefault((name, row["option"], row["value"]), []).append(row)
    found = []
    for (curve, option, value), group in groups.items():
        if metric == SOLVER_ERROR:
            values, errors = [float(row["solver_error"]) for row in group], [0.0]
        else:
            values = [_number(row["metrics"][metric]) for row in group]
            stated = [row["metrics"][name] for row in group if (name := f"{metric} error") in row["metrics"]]
            # Without errors of its own a metric has that of the seeds, if there are several.
            errors = [_number(error) for error in stated] or [math.nan if len(group) == 1 else 0.0]
        sampling = math.sqrt(sum(error**2 for error in errors)) / len(group)
        several = len(values) > 1 and all(map(math.isfinite, values))
        spread = statistics.stdev(values) / math.sqrt(len(values)) if several else 0.0
        nfe, seconds = (statistics.fmean(row[field] for row in group) for field in ("nfe", "seconds"))
        error = max(sampling, spread)
        found.append(Point(curve, option, value, nfe, seconds, statistics.fmean(values), error, tuple(group)))
    return sorted(found, key=lambda point: point.nfe)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def by_curve(found: Sequence[Point]) -> dict[str, list[Point]]:
    """Return points by curve, curves by name."""
    return {name: [point for point in found if point.curve == name] for name in sorted({p.curve for p in found})}


def recommendation(found: Sequence[Point], metric: str) -> list[str]:
    """Return one sentence for each budget of evaluations, and one for the cheapest that is as good as the best."""
    sentences = []
    finite = [point for point in found if math.isfinite(point.metric)]
    for budget in BUDGETS:
        if within := [point for point in finite if point.nfe <= budget]:
            best = min(within, key=lambda point: point.metric)
            sentences.append(
                f"At most {budget} evaluations: {best.curve} with {best.setting} ({best.nfe:.0f} evaluations), "
                f"{metric} {best.told}."
            )
    if finite:
        best = min(finite, key=lambda point: point.metric)
        good = [p for p in finite if p.metric - best.metric <= QUANTILE * math.hypot(p.known, best.known)]
        cheap = min(good, key=lambda point: (point.nfe, point.metric))
        sentences.append(
            f"Cheapest within the error of the best ({best.curve} with {best.setting}, {best.told}): "
            f"{cheap.curve} with {cheap.setting} ({cheap.nfe:.0f} evaluations), {metric} {cheap.told}."
        )
    return sentences


def as_csv(rows: Sequence[Row]) -> str:
    """Return rows as comma-separated values, a column a number."""
    flat = []
    for row in rows:
        numbers = {name: value for name, value in row.items() if not isinstance(value, dict)}
        options = {f"option {name}": value for name, value in row["options"].items()}
        flat.append({**numbers, **row["metrics"], **options, **row["provenance"]})
    columns = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()
