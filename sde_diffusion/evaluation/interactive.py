"""Figures to be explored in a browser: hover for what a number depends on, click a curve in the legend to hide it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sde_diffusion.evaluation.curves import SOLVER_ERROR, Point, by_curve, metric_names, points
from sde_diffusion.evaluation.figures import COLOURS
from sde_diffusion.evaluation.sweep import Row
from sde_diffusion.evaluation.uncertainty import QUANTILE

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "hexagon")
COSTS = {"nfe": "network evaluations a sample", "seconds": "seconds of all samples"}
WIDGET = {
    "responsive": True,
    "displaylogo": False,
    "toImageButtonOptions": {"format": "svg"},
    "modeBarButtonsToRemove": ["lasso2d", "select2d"],
}
"""Of every interactive figure; the camera saves it as SVG."""


def _hover(point: Point, metric: str) -> str:
    """Everything a number depends on, as lines of HTML."""
    row = point.rows[0]
    made, options = row["provenance"], ", ".join(f"{k}={v}" for k, v in row["options"].items())
    seeds = ", ".join(str(r["seed"]) for r in point.rows)
    lines = [
        f"<b>{point.curve}, {point.setting}</b>",
        f"{metric} {point.told}",
        f"NFE {point.nfe:.1f}, {point.seconds:.2f} s, {row['num_samples']} samples, seeds {seeds}",
        options,
        f"reference {str(row['reference'])[:40]}, extractor {str(row['extractor'])[:12]}",
        f"checkpoint {str(row['checkpoint'])[:12]}, step {made.get('step')}, weights {made.get('weights')}",
        f"{row['dtype']} on {made.get('device')}, {made.get('machine')}",
        f"code {made.get('version')} {str(made.get('commit') or '')[:10]}, {made.get('time')}",
    ]
    return "<br>".join(lines)


def _axis_type(values: Sequence[float]) -> str:
    wide = bool(values) and min(values) > 0.0 and max(values) > 5.0 * min(values)
    return "log" if wide else "linear"


def _ticks(kind: str) -> dict[str, Any]:
    """Return the ticks of an axis, on a log axis 1, 2, 5, 10, 20 … in full: Plotly writes 20 as a small 2."""
    if kind == "linear":
        return {"tickmode": "auto"}
    values = [digit * 10.0**power for power in range(-6, 9) for digit in (1, 2, 5)]
    return {"tickmode": "array", "tickvals": values, "ticktext": [f"{value:g}" for value in values]}


def _layout(figure: Any, x: str, y: str, height: int = 480) -> None:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 16, "t": 48, "b": 48},
        legend={"orientation": "h", "y": -100 / (height - 96), "yanchor": "top", "x": 0.0},
        font={"size": 13},
        hoverlabel={"align": "left", "font": {"size": 12}},
        xaxis={"title": {"text": x}},
        yaxis={"title": {"text": y}},
    )


class _SweepData:
    """What a figure of a sweep shows of each metric.

    Args:
        rows: of one measurement.
        cost: "nfe" or "seconds".
    """

    def __init__(self, rows: Sequence[Row], cost: str) -> None:
        self.cost, self.names = cost, metric_names(rows)
        self.curves = {metric: by_curve(points(rows, metric)) for metric in self.names}
        shown = {metric: [p.metric for own in self.curves[metric].values() for p in own] for metric in self.names}
        self._finite = {metric: [v for v in shown[metric] if math.isfinite(v)] for metric in self.names}
        self.kinds = {metric: _axis_type(self._finite[metric]) for metric in self.names}
        self.marks: dict[str, float | None] = rows[0].get("training_images") or {}

    def costs(self, own: Sequence[Point]) -> list[float]:
        return [p.nfe if self.cost == "nfe" else p.seconds for p in own]

    def ordered(self, metric: str, curve: str) -> list[Point]:
        own = self.curves[metric][curve]
        return [p for _, p in sorted(zip(self.costs(own), own, strict=True), key=lambda pair: pair[0])]

    def _band(self, metric: str, own: list[Point]) -> list[float]:
        """Return the upper ends of the 95 % intervals there, and the lower ones back."""
        lowest = min(self._finite[metric], default=0.0) / 4.0
        floor = lowest if self.kinds[metric] == "log" else -math.inf  # a log axis has no 0
        low, high = zip(*(p.interval for p in own), strict=True)
        return [*high, *(max(value, floor) for value in reversed(low))]

    def traces(self, metric: str) -> dict[str, list[Any]]:
        """Return heights and texts of all lines, in the order in which the figure has them."""
        y: list[Any] = []
        text: list[Any] = []
        for curve in self.curves[metric]:
            own = self.ordered(metric, curve)
            y += [self._band(metric, own), [p.metric for p in own]]
            text += [None, [_hover(p, metric) for p in own]]
        if self.marks:
            mark = self.marks.get(metric)  # None where it was not finite
            y.append([mark] * 2)
            text.append([f"training data: {metric} {'unknown' if mark is None else format(mark, '.4g')}"] * 2)
        return {"y": y, "text": text}

    def axis(self, metric: str) -> dict[str, Any]:
        """Return the layout of the vertical axis."""
        kind = self.kinds[metric]
        ticks = {f"yaxis.{key}": value for key, value in _ticks(kind).items()}
        return {"yaxis.title.text": metric, "yaxis.type": kind, "yaxis.autorange": True, **ticks}


def _add_curve(figure: Any, i: int, curve: str, x: list[float], band: list[float], y: list[float], text: Any) -> None:
    """Draw number ``i`` of a figure's curves, and its band under it."""
    colour, symbol = COLOURS[i % len(COLOURS)], SYMBOLS[(i // len(COLOURS) + i) % len(SYMBOLS)]
    shared = {"legendgroup": curve, "name": curve}
    area = {"fill": "toself", "fillcolor": colour, "opacity": 0.15, "line": {"width": 0}}
    figure.add_scatter(x=[*x, *reversed(x)], y=band, mode="lines", hoverinfo="skip", showlegend=False, **area, **shared)
    figure.add_scatter(
        x=x,
        y=y,
        text=text,
        hovertemplate="%{text}<extra></extra>",
        mode="lines+markers",
        line={"color": colour, "width": 2},
        marker={"size": 7, "symbol": symbol},
        **shared,
    )


def sweep_figure(rows: Sequence[Row], cost: str) -> Any:
    """Return an interactive figure of the metrics over their cost, a curve and its 95 % band for each sampler.

    Args:
        rows: of one measurement.
        cost: "nfe" or "seconds".
    """
    from plotly import graph_objects as go

    shown = _SweepData(rows, cost)
    first = shown.names[0]
    figure, traces = go.Figure(), shown.traces(first)
    for i, curve in enumerate(shown.curves[first]):
        x = shown.costs(shown.ordered(first, curve))
        band, y = traces["y"][2 * i : 2 * i + 2]
        _add_curve(figure, i, curve, x, band, y, traces["text"][2 * i + 1])
    if shown.marks:
        costs = [x for own in shown.curves[first].values() for x in shown.costs(own)]
        figure.add_scatter(
            x=[min(costs), max(costs)],
            y=traces["y"][-1],
            text=traces["text"][-1],
            hovertemplate="%{text}<extra></extra>",
            mode="lines",
            line={"color": "#777", "width": 1.5, "dash": "dash"},
            name="training data",
        )
    _layout(figure, COSTS[cost], first)
    figure.update_xaxes(type="log", **_ticks("log"))
    figure.update_yaxes(type=shown.kinds[first], **_ticks(shown.kinds[first]))
    buttons = [{"label": m, "method": "update", "args": [shown.traces(m), shown.axis(m)]} for m in shown.names]
    place = {"x": 0.0, "y": 1.02, "xanchor": "left", "yanchor": "bottom", "direction": "down", "showactive": True}
    figure.update_layout(updatemenus=[{"buttons": buttons, **place}])
    return figure


def solver_figure(found: Sequence[Point], rows: Sequence[Row]) -> Any:
    """Return an interactive figure of the solver's own error of deterministic samplers.

    Args:
        found: the points with that error.
        rows: of the measurement, whose curves keep their colours.
    """
    from plotly import graph_objects as go

    figure = go.Figure()
    places = {curve: i for i, curve in enumerate(by_curve(points(rows)))}
    for curve, own in by_curve(found).items():
        figure.add_scatter(
            x=[p.nfe for p in own],
            y=[p.metric for p in own],
            text=[_hover(p, SOLVER_ERROR) for p in own],
            hovertemplate="%{text}<extra></extra>",
            mode="lines+markers",
            line={"color": COLOURS[places[curve] % len(COLOURS)]},
            name=curve,
        )
    _layout(figure, COSTS["nfe"], SOLVER_ERROR, height=380)
    figure.update_xaxes(type="log", **_ticks("log"))
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    return figure


def training_figure(runs: Mapping[str, Sequence[dict[str, float]]], value: str) -> Any:
    """Return an interactive figure of the loss or the learning rate over the training steps of runs by name."""
    from plotly import graph_objects as go

    figure = go.Figure()
    for i, (name, lines) in enumerate(runs.items()):
        steps, values = ([line[key] for line in lines] for key in ("step", value))
        colour = COLOURS[i % len(COLOURS)]
        figure.add_scatter(x=steps, y=values, name=name, mode="lines", line={"color": colour, "width": 1.5})
    _layout(figure, "training step", value.replace("_", " "), height=320)
    figure.update_yaxes(type="log" if value == "loss" else "linear")
    figure.update_layout(showlegend=len(runs) > 1)
    return figure


def bound_figure(curves: dict[str, list[list[float]]], unit: str) -> Any:
    """Return an interactive figure of where the bounds' cost is spent, in bits/dim or nats; bars are 95 % intervals."""
    from plotly import graph_objects as go

    figure = go.Figure()
    for i, (name, (log_snr, value, error)) in enumerate(curves.items()):
        bars = {"type": "data", "array": [QUANTILE * e for e in error]} if name == "continuous" else None
        mode = "markers" if name == "continuous" else "lines"
        colour = {"color": COLOURS[i % len(COLOURS)]}
        figure.add_scatter(
            x=log_snr, y=value, error_y=bars, mode=mode, name=f"{name} bound", marker=colour, line=colour
        )
    _layout(figure, "log SNR (noise on the left, data on the right)", f"{unit} per unit of log SNR", height=360)
    return figure
