"""The likelihood of a data set as a table: bits per dimension of every kind, and the error budget.

A file of its own beside :mod:`~sde_diffusion.evaluation.scoring`, which computes; this reads what was computed.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sde_diffusion import likelihood
from sde_diffusion.data import Dataset
from sde_diffusion.errors import require
from sde_diffusion.evaluation.scoring import Scores, ScoringOptions
from sde_diffusion.records import read_record


def _mean_error(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard error over the finite values (N,)."""
    return likelihood.mean_and_error(torch.from_numpy(np.asarray(values, dtype=np.float64)))


def summary(scores: Scores, dataset: Dataset, options: ScoringOptions) -> dict[str, Any]:
    """Return the table and the error budget in bits/dim, of grey levels or of the density of continuous data."""
    size = math.prod(dataset.shape)
    levels = dataset.levels or 1
    scale = dataset.cell * levels

    def bits(nats: np.ndarray) -> np.ndarray:
        return likelihood.bits_per_dim(torch.from_numpy(nats), dataset.shape, levels, scale).numpy()

    unit = 1.0 / (size * math.log(2.0))
    ode = bits(scores.ode)
    rows: dict[str, Any] = {"ode": _mean_error(ode.mean(axis=0))}
    several, exact = options.dequantisations > 1, options.divergence == "exact"
    if several and exact:  # the noise of random probes would pass for likelihood: E exp(noise) > 1
        weighted = likelihood.importance_weighted(torch.from_numpy(scores.ode)).numpy()
        rows["ode, importance-weighted"] = _mean_error(bits(weighted))
    for name in ("continuous", "discrete"):  # bounds on grey levels are of probabilities already
        values = getattr(scores, name)
        rows[name] = _mean_error(values * unit if dataset.levels is not None else bits(-values))
    # Probes: each image has its own, so the mean's error is that of one image over √N.
    probes = np.sqrt(np.nanmean(scores.ode_std_error**2) / scores.ode.size) * unit if options.probes > 1 else math.nan
    pilot = scores.pilot
    # Draws too; the spread over them includes that of the probes.
    draws = np.sqrt(np.nanmean(ode.var(axis=0, ddof=1)) / ode.size) if several else math.nan
    return {
        "bits_per_dim": {name: {"mean": mean, "std_error": error} for name, (mean, error) in rows.items()},
        "budget": {
            "probes": 0.0 if exact else float(probes),
            "solver": [-v * unit if i == 0 else v * unit for i, v in enumerate(pilot["solver"])],
            "prior": pilot["prior"] * unit,
            "truncation": [-v * unit if i == 0 else v * unit for i, v in enumerate(pilot["truncation"])],
            "dequantisation": float(draws) if dataset.levels is not None else 0.0,
        },
        "parts": {name: {part: v * unit for part, v in parts.items()} for name, parts in scores.parts.items()},
        "curves": {name: (curve * [[1.0], [unit], [unit]]).tolist() for name, curve in scores.curves.items()},
        "nfe": {"mean": float(np.nanmean(scores.nfe)), "max": float(np.nanmax(scores.nfe))},
        "tolerance": pilot["tolerance"],
        "pilot": pilot,
        "failed": {str(i): reason for i, reason in scores.reasons.items()},
        "options": asdict(options),
    }


_PARTS = {
    "budget": ("probes", "solver", "prior", "truncation", "dequantisation"),
    "bits_per_dim": ("ode", "continuous", "discrete"),
    "nfe": ("mean", "max"),
    "pilot": ("images",),
    "options": ("bound_steps", "variance", "dequantisations"),
    "curves": ("continuous", "discrete"),
    "provenance": ("num_images",),
}
"""What is read of a summary."""


def read_summary(path: Path) -> dict[str, Any]:
    """Read what was written of a :func:`summary`; what was not finite is NaN again.

    Raises:
        InputError: if it is damaged, or none.
    """
    content: dict[str, Any] = read_record(path)
    for name, parts in _PARTS.items():
        part = content.get(name)
        ok = isinstance(part, dict) and set(parts) <= part.keys()
        require(ok, f"{path}: {name}", part, f"the likelihood of a data set, with {', '.join(parts)}")
    require(isinstance(content.get("tolerance"), float), f"{path}: tolerance", content.get("tolerance"), "a number")
    for name, row in content["bits_per_dim"].items():
        numbers = [math.nan if row[key] is None else float(row[key]) for key in ("mean", "std_error")]
        content["bits_per_dim"][name] = dict(zip(("mean", "std_error"), numbers, strict=True))
    return content


Line = tuple[str, str, str]
"""What a figure is called, the figure, and how it was had."""


def _value(mean: float, error: float | None) -> str:
    return f"{mean:.4f}" + ("" if error is None or math.isnan(error) else f" ± {error:.4f}")


def figures(result: dict[str, Any]) -> list[Line]:
    """Return the likelihoods of a :func:`summary` (or of its JSON) in bits/dim, a line each."""
    bits, options = result["bits_per_dim"], result["options"]
    notes = {
        "ode": f"tolerance {result['tolerance']:.0e}, {result['nfe']['mean']:.0f} evaluations an image",
        "ode, importance-weighted": f"{options['dequantisations']} dequantisations",
        "continuous": "at most, the reverse SDE",
        "discrete": f"at most, the reverse process; {options['bound_steps']} steps, variance {options['variance']}",
    }
    names = {
        "ode": "ODE (probability flow)",
        "ode, importance-weighted": "… importance-weighted",
        "continuous": "continuous bound (SDE)",
        "discrete": "discrete bound",
    }
    return [(names[k], _value(found["mean"], found["std_error"]), notes[k]) for k, found in bits.items()]


def error_budget(result: dict[str, Any]) -> list[Line]:
    """Return the error budget of the ODE's figure in bits/dim, a line a source."""
    budget, pilot = result["budget"], f"{result['pilot']['images']} images"
    return [
        ("probes", *_share(budget["probes"], "one probe an image", "exact divergence")),
        ("solver", _signed(budget["solver"]), f"change at a tenth of the tolerance, {pilot}"),
        ("prior", f"at most {budget['prior']:.1e}", "KL(p_T ‖ prior)"),
        ("truncation", _signed(budget["truncation"]), f"the bound through t_min against the figure, {pilot}"),
        ("dequantisation", *_share(budget["dequantisation"], "one draw an image", "continuous data")),
    ]


def _share(value: float | None, single: str, none: str) -> tuple[str, str]:
    if value is None or math.isnan(value):
        return "within the standard error above", single
    return ("0", none) if value == 0.0 else (f"{value:.4f}", "")


def _signed(pair: list[float]) -> str:
    return f"{pair[0]:+.4f} ± {pair[1]:.4f}"


REMARK = (
    "The bounds are on the reverse process and need no dequantisation; the ODE is another model unless the score is "
    "exact, and its figure is of dequantised images."
)


def as_text(result: dict[str, Any]) -> str:
    """Return the figures and the error budget as lines of text."""

    def lines(found: list[Line]) -> list[str]:
        wide = [max(len(line[i]) for line in found) for i in range(2)]
        return [f"  {name:{wide[0]}}  {value:{wide[1]}}  {note}".rstrip() for name, value, note in found]

    remark = textwrap.wrap(REMARK, 112, initial_indent="  ", subsequent_indent="  ")
    first, second = "bits/dim, mean ± standard error over images", "error budget of the ODE's figure, bits/dim"
    return "\n".join([first, *lines(figures(result)), *remark, second, *lines(error_budget(result))])


@dataclass(frozen=True)
class Separation:
    """How well log-likelihood tells two data sets apart.

    Attributes:
        auroc: probability that an image of the first has the higher log-likelihood; 0.5 is chance.
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
    require(min(len(a), len(b)) >= 2, "images", (len(a), len(b)), "at least 2 finite log-likelihoods in each data set")

    def placements(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Share of ``y`` below each ``x``, ties half."""
        return (np.searchsorted(y, x, "left") + np.searchsorted(y, x, "right")) / (2.0 * len(y))

    above, below = placements(a, b), 1.0 - placements(b, a)
    variance = above.var(ddof=1) / len(a) + below.var(ddof=1) / len(b)
    return Separation(float(above.mean()), math.sqrt(float(variance)))
