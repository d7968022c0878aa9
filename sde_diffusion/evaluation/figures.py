"""Figures fit for a paper: curves with their errors, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sde_diffusion.evaluation.curves import Point, by_curve
from sde_diffusion.evaluation.uncertainty import QUANTILE
from sde_diffusion.files import write_atomically

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#8C6D31",
    "#332288",
    "#999933",
    "#882255",
)
"""Told apart by the colour-blind too.

Reference:
    M. Okabe, K. Ito, "Color Universal Design", 2008; with brown in place of yellow, which fades on white.
"""


SUFFIXES = (".svg", ".png")


def logarithmic(*axes: Any) -> None:
    """Mark x or y axes at 1, 2 and 5 times the powers of ten, in plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


@contextmanager
def figure(
    path: Path,
    size: tuple[float, float],
    panels: int = 1,
    dpi: int = 120,
    *,
    rows: int = 1,
    widths: Sequence[float] | None = None,
) -> Iterator[list[Any]]:
    """Yield the axes of a figure of ``size`` inches with panels side by side, and write it to ``path`` afterwards.

    A path without a suffix is written both as SVG and as PNG.

    Args:
        panels: of each row.
        rows: of panels, which are yielded row by row.
        widths: of the panels of a row, relative to each other; by default they are equal.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(rows, panels, figsize=size, squeeze=False, width_ratios=widths)
    try:
        yield list(axes.flat)
        drawn.tight_layout()
        for target in [path] if path.suffix else [path.with_suffix(suffix) for suffix in SUFFIXES]:
            write_atomically(target, lambda p: drawn.savefig(p, dpi=dpi))
    finally:
        pyplot.close(drawn)


def save_bound(path: Path, curves: dict[str, list[list[float]]], unit: str) -> None:
    """Plot bounds over the log signal-to-noise ratio: where their cost is spent, bars of 95 % intervals.

    Args:
        curves: per bound, rows of log SNR, cost per unit of it, and its standard error.
        unit: of the cost, "bits/dim" or "nats".
    """
    with figure(path, (6.4, 4.0)) as (axis,):
        style = {"fmt": "o", "markersize": 4, "capsize": 2}
        for name, (log_snr, value, error) in curves.items():
            if name == "continuous":
                axis.errorbar(log_snr, value, yerr=[QUANTILE * e for e in error], label=f"{name} bound", **style)
            else:
                axis.plot(log_snr, value, linewidth=1.2, label=f"{name} bound")
        axis.set_xlabel("log SNR  (noise on the left, data on the right)")
        axis.set_ylabel(f"{unit} per unit of log SNR")
        axis.set_ylim(bottom=0.0)
        axis.grid(alpha=0.3)
        axis.legend()


def save_sweep(path: Path, points: Sequence[Point], metric: str, cost: str = "nfe", mark: float | None = None) -> None:
    """Plot a metric over its cost, a curve a sampler, bars of 95 % intervals.

    Args:
        points: of :func:`sde_diffusion.evaluation.curves.points`.
        metric: what is plotted.
        cost: "nfe" or "seconds".
        mark: the metric of training data, drawn as a line.
    """
    with figure(path, (6.8, 4.4)) as (axis,):
        for i, (name, own) in enumerate(by_curve(points).items()):
            x, y = [getattr(point, cost) for point in own], [point.metric for point in own]
            bars = [QUANTILE * point.error for point in own] if any(point.error for point in own) else None
            style = {"marker": "o", "markersize": 4, "capsize": 2, "linewidth": 1.2}
            axis.errorbar(x, y, yerr=bars, color=COLOURS[i % len(COLOURS)], label=name, **style)
        if mark is not None:
            axis.axhline(mark, color="#777", linestyle="--", linewidth=1.0, label="training data")
        axis.set_xscale("log")
        logarithmic(axis.xaxis)
        values = [point.metric for point in points] + ([] if mark is None else [mark])
        below = [-value for value in values if value <= 0.0]
        if below:  # an estimate without bias of what is nearly 0: linear about 0, logarithmic beyond
            axis.set_yscale("symlog", linthresh=2.0 * max(below) or 1.0)
            axis.axhline(0.0, color="#777", linewidth=0.8)
        else:
            axis.set_yscale("log")
            logarithmic(axis.yaxis)
        axis.set_xlabel("network evaluations a sample" if cost == "nfe" else "seconds of all samples")
        axis.set_ylabel(metric)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)


def save_training(path: Path, runs: Mapping[str, Sequence[dict[str, float]]]) -> None:
    """Plot the loss of each run over its steps.

    Args:
        runs: per run, the lines of its ``train.jsonl``.
    """
    with figure(path, (6.8, 3.6)) as (axis,):
        for i, (name, lines) in enumerate(runs.items()):
            colour = COLOURS[i % len(COLOURS)]
            axis.plot([line["step"] for line in lines], [line["loss"] for line in lines], color=colour, label=name)
        axis.set_yscale("log")
        logarithmic(axis.yaxis)
        axis.set_xlabel("training step")
        axis.set_ylabel("loss")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
