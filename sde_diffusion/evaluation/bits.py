"""The likelihood of a data set as a table: figures of every kind, and the error budget.

Of grey levels figures are in bits per dimension, the cost of a picture; of continuous data log p in nats per sample and
per dimension, which depends on the units of the data. A file of its own beside
:mod:`~sde_diffusion.evaluation.scoring`, which computes; this reads what was computed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_diffusion import likelihood
from sde_diffusion.errors import InputError, require, shortened
from sde_diffusion.evaluation.scoring import Scores, ScoringOptions
from sde_diffusion.evaluation.uncertainty import QUANTILE, plus_minus
from sde_diffusion.records import read_record


def _mean_error(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard error over the finite values (N,)."""
    return likelihood.mean_and_error(torch.from_numpy(np.asarray(values, dtype=np.float64)))


def summary(scores: Scores, shape: Sequence[int], levels: bool, options: ScoringOptions) -> dict[str, Any]:
    """Return the table and the error budget: bits/dim of grey levels, or log p in nats of continuous data.

    Args:
        shape: of one example.
        levels: whether the data are grey levels.
    """
    size = math.prod(shape)
    share = 1.0 / (size * math.log(2.0)) if levels else 1.0  # of a nat
    sign = -1.0 if levels else 1.0
    found = {"ode": scores.ode.mean(axis=0)}
    several, exact = options.dequantisations > 1, options.divergence == "exact"
    if several and exact:  # the noise of random probes would pass for likelihood: E exp(noise) > 1
        found["ode, importance-weighted"] = likelihood.importance_weighted(torch.from_numpy(scores.ode)).numpy()
    found |= {"continuous": scores.continuous, "discrete": scores.discrete}
    rows = {name: _mean_error(sign * share * values) for name, values in found.items()}
    # Probes: each example has its own, so the mean's error is that of one example over √N.
    probes = np.sqrt(np.nanmean(scores.ode_std_error**2) / scores.ode.size) if options.probes > 1 else math.nan
    pilot = scores.pilot
    # Draws too; the spread over them includes that of the probes.
    draws = np.sqrt(np.nanmean(scores.ode.var(axis=0, ddof=1)) / scores.ode.size) if several else math.nan
    table = {name: {"mean": mean, "std_error": error} for name, (mean, error) in rows.items()}
    each = {name: {key: value / size for key, value in row.items()} for name, row in table.items()}
    return {
        **({BITS: table} if levels else {NATS: table, f"{NATS}_per_dim": each}),
        "budget": {
            "probes": 0.0 if exact else float(probes) * share,
            "solver": [pilot["solver"][0] * sign * share, pilot["solver"][1] * share],
            "prior": pilot["prior"] * share,
            "truncation": [pilot["truncation"][0] * sign * share, pilot["truncation"][1] * share],
            "dequantisation": float(draws) * share if levels else 0.0,
        },
        "parts": {name: {part: v * share for part, v in parts.items()} for name, parts in scores.parts.items()},
        "curves": {name: (curve * [[1.0], [share], [share]]).tolist() for name, curve in scores.curves.items()},
        "nfe": {"mean": float(np.nanmean(scores.nfe)), "max": float(np.nanmax(scores.nfe))},
        "tolerance": pilot["tolerance"],
        "pilot": pilot,
        "failed": {str(i): reason for i, reason in scores.reasons.items()},
        "options": asdict(options),
    }


BITS, NATS = "bits_per_dim", "log_p_nats"
"""Key of the figures of grey levels, and of continuous data."""


def _table(result: dict[str, Any]) -> Any:
    return result.get(BITS, result.get(NATS))


def unit(result: dict[str, Any]) -> str:
    """Return the unit of the figures of a :func:`summary`."""
    return "bits/dim" if BITS in result else "nats"


_PARTS = {
    "budget": ("probes", "solver", "prior", "truncation", "dequantisation"),
    "nfe": ("mean", "max"),
    "pilot": ("examples",),
    "options": ("bound_steps", "variance", "dequantisations"),
    "curves": ("continuous", "discrete"),
    "provenance": ("num_examples",),
}
"""What is read of a summary."""


def read_summary(path: Path) -> dict[str, Any]:
    """Read what was written of a :func:`summary`; what was not finite is NaN again.

    Raises:
        InputError: if it is damaged, or none.
    """
    content = _modern(read_record(path))
    for name, parts in _PARTS.items():
        part = content.get(name)
        ok = isinstance(part, dict) and set(parts) <= part.keys()
        require(ok, f"{path}: {name}", part, f"the likelihood of a data set, with {', '.join(parts)}")
    require(isinstance(content.get("tolerance"), float), f"{path}: tolerance", content.get("tolerance"), "a number")
    table = _table(content)
    ok = isinstance(table, dict) and {"ode", "continuous", "discrete"} <= table.keys()
    require(ok, f"{path}: {BITS} or {NATS}", table, "the likelihood of a data set, with ode, continuous, discrete")
    try:
        for name, row in table.items():
            table[name] = {key: math.nan if row[key] is None else float(row[key]) for key in ("mean", "std_error")}
        as_text(content)  # all that is told of it
        shapes = [np.asarray(curve, dtype=np.float64).shape for curve in content["curves"].values()]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected the likelihood of a data set; {shortened(str(error))}") from None
    ok = all(len(shape) == 2 and shape[0] == 3 for shape in shapes)
    require(ok, f"{path}: curves", shapes, "log SNR, value and error of each point, (3, n)")
    return content


def _modern(content: dict[str, Any]) -> dict[str, Any]:
    """Return a summary of version 0.1.0, which spoke of images always, in the words of this one."""
    for part, old, new in (("pilot", "images", "examples"), ("provenance", "num_images", "num_examples")):
        if isinstance(content.get(part), dict) and old in content[part]:
            content[part] = {new: content[part][old], **content[part]}
    return content


Line = tuple[str, str, str]
"""What a figure is called, the figure, and how it was had."""


def heading(result: dict[str, Any]) -> str:
    """Return what the figures of a :func:`summary` are."""
    what = "bits/dim, mean over images" if BITS in result else "log p(x) in nats, mean over samples (and per dimension)"
    return f"{what}; ± is a 95 % interval"


def figures(result: dict[str, Any]) -> list[Line]:
    """Return the likelihoods of a :func:`summary` (or of its JSON) in its unit, a line each."""
    options, bits = result["options"], BITS in result
    one, bound = ("an image", "at most") if bits else ("a sample", "at least")
    notes = {
        "ode": f"tolerance {result['tolerance']:.0e}, {result['nfe']['mean']:.0f} evaluations {one}",
        "ode, importance-weighted": f"{options['dequantisations']} dequantisations",
        "continuous": f"{bound}, the reverse SDE",
        "discrete": f"{bound}, the reverse process; {options['bound_steps']} steps, variance {options['variance']}",
    }
    names = {
        "ode": "ODE (probability flow)",
        "ode, importance-weighted": "… importance-weighted",
        "continuous": "continuous bound (SDE)",
        "discrete": "discrete bound",
    }

    each = result.get(f"{NATS}_per_dim", {})

    def value(name: str, found: dict[str, float]) -> str:
        interval = plus_minus(found["mean"], found["std_error"], ".4f", ".4f")
        return interval + (f" ({each[name]['mean']:.4f})" if name in each else "")

    return [(names[name], value(name, found), notes[name]) for name, found in _table(result).items()]


def budget_heading(result: dict[str, Any]) -> str:
    """Return what the lines of :func:`error_budget` are."""
    return f"error budget of the ODE's figure, {unit(result)}; ± is a 95 % interval"


def error_budget(result: dict[str, Any]) -> list[Line]:
    """Return the error budget of the ODE's figure in its unit, a line a source."""
    one, many = ("an image", "images") if BITS in result else ("a sample", "samples")
    budget, pilot = result["budget"], f"{result['pilot']['examples']} {many}"
    return [
        ("probes", *_share(budget["probes"], f"one probe {one}", "exact divergence")),
        ("solver", _signed(budget["solver"]), f"change at a tenth of the tolerance, {pilot}"),
        ("prior", f"at most {budget['prior']:.1e}", "KL(p_T ‖ prior)"),
        ("truncation", _signed(budget["truncation"]), f"from less noise than at t_min, against the figure, {pilot}"),
        ("dequantisation", *_share(budget["dequantisation"], f"one draw {one}", "continuous data")),
    ]


def _share(value: float | None, single: str, none: str) -> tuple[str, str]:
    if value is None or math.isnan(value):
        return "within the interval above", single
    return ("0", none) if value == 0.0 else (f"± {QUANTILE * value:.4f}", "")


def _signed(pair: list[float]) -> str:
    return plus_minus(pair[0], pair[1], "+.4f", ".4f")


def remark(result: dict[str, Any]) -> str:
    """Return what to know before figures are compared."""
    bounds = "The bounds are on the reverse process"
    if BITS in result:
        return (
            f"{bounds} and need no dequantisation; the ODE is another model unless the score is exact, and its figure "
            "is of dequantised images."
        )
    return f"{bounds}; the ODE is another model unless the score is exact. A density depends on the units of the data."


def as_text(result: dict[str, Any]) -> str:
    """Return the figures and the error budget as lines of text."""

    def lines(found: list[Line]) -> list[str]:
        wide = [max(len(line[i]) for line in found) for i in range(2)]
        return [f"  {name:{wide[0]}}  {value:{wide[1]}}  {note}".rstrip() for name, value, note in found]

    told = textwrap.wrap(remark(result), 112, initial_indent="  ", subsequent_indent="  ")
    first, second = heading(result), budget_heading(result)
    return "\n".join([first, *lines(figures(result)), *told, second, *lines(error_budget(result))])


@dataclass(frozen=True)
class Separation:
    """How well log-likelihood tells two data sets apart.

    Attributes:
        auroc: probability that an example of the first has the higher log-likelihood; 0.5 is chance.
        std_error: of that.
    """

    auroc: float
    std_error: float


def separation(inside: np.ndarray, outside: np.ndarray) -> Separation:
    """Return the area under the ROC curve of log-likelihoods, and its standard error.

    References:
        J. Hanley, B. McNeil, 1982, Radiology 143(1), 29-36 (the error from the two placement variances: E. DeLong, D.
        DeLong, D. Clarke-Pearson, 1988, Biometrics 44(3), 837-845).
    """
    a, b = (np.sort(values[np.isfinite(values)]) for values in (inside, outside))
    require(min(len(a), len(b)) >= 2, "examples", (len(a), len(b)), "at least 2 finite log-likelihoods in each set")

    def placements(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Share of ``y`` below each ``x``, ties half."""
        return (np.searchsorted(y, x, "left") + np.searchsorted(y, x, "right")) / (2.0 * len(y))

    above, below = placements(a, b), 1.0 - placements(b, a)
    variance = above.var(ddof=1) / len(a) + below.var(ddof=1) / len(b)
    return Separation(float(above.mean()), math.sqrt(float(variance)))
