"""Pictures of samples: grids, strips of the reverse process, and figures of what is no picture, beside the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require
from sde_diffusion.evaluation.figures import COLOURS, figure, logarithmic
from sde_diffusion.files import write_atomically

SMALLEST = 32
"""Pictures below this side are enlarged by whole factors, so that 8×8 digits can be looked at."""
MOST_COMPONENTS, MOST_CHANNELS, MOST_SERIES, MOST_VOLUMES = 6, 3, 3, 8
"""What is drawn of a vector, of a series, of a set of series and of a set of volumes."""
STRIP_PANELS, STRIP_VOLUMES = 6, 4
"""Panels of a row of a strip of series, and volumes of a strip of volumes."""
MOST_POINTS, MOST_VALUES = 2000, 1_000_000
"""Points of a scatter plot, and values of a histogram, of either set; of more, as many at even distances."""
CENTRAL = (0.005, 0.995)
"""Quantiles that axes reach to, and a tenth beyond, so that no single outlier squashes all others."""
FAR_AXES = 0.05
"""The share of samples beyond the axes from which on a figure says so."""
TINTS = {"data": COLOURS[1], "samples": COLOURS[0]}

_Sets = dict[str, np.ndarray]  # "data", where there are some, and "samples": (N, …), float64


def is_picture(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are grey or colour pictures (1 or 3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def _tile(x: Tensor, columns: int) -> Tensor:
    """Lay pictures (N, C, H, W) in [−1, 1] out in rows: uint8 (H', W', 3)."""
    from torchvision.utils import make_grid

    x = x.detach().float().cpu().clamp(-1.0, 1.0).add(1.0).div(2.0)
    factor = math.ceil(SMALLEST / x.shape[-1])
    x = x.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    grid: Tensor = make_grid(x, nrow=columns, padding=2, pad_value=1.0)
    return grid.mul(255.0).round().to(torch.uint8).permute(1, 2, 0)


def save_grid(path: Path, x: Tensor, columns: int | None = None) -> None:
    """Write pictures (N, C, H, W) in [−1, 1] as one PNG; vectors (N, D) as a scatter plot of two components."""
    if is_picture(x.shape[1:]):
        from PIL import Image

        tiles = _tile(x, columns or math.ceil(math.sqrt(len(x))))
        write_atomically(path, lambda p: Image.fromarray(tiles.numpy()).save(p))
    else:
        _save_scatter(path, [x], ["samples"])


def save_pictures(folder: Path, pictures: Mapping[str, Tensor]) -> None:
    """Write 8-bit pictures, uint8 (1 or 3, H, W), into files of their names: grey, or RGB."""
    from PIL import Image

    for name, picture in pictures.items():
        pixels = picture.permute(1, 2, 0).numpy()
        Image.fromarray(pixels[..., 0] if len(picture) == 1 else pixels).save(folder / name)


def save_strip(path: Path, states: Sequence[Tensor], times: Sequence[float]) -> None:
    """Write the reverse process, a column a time of pictures of the states, or of the middle slices of volumes.

    Of series the first channel of a few is drawn, a panel a time; of all else a scatter plot of two components.

    Args:
        states: (N, *) each, scaled to about unit size.
        times: their times.

    Raises:
        InputError: if states of series or volumes are not finite.
    """
    shape = states[0].shape[1:]
    titles = [f"t = {t:.3g}" for t in times]
    if is_picture(shape):
        stacked = torch.stack(list(states), dim=1)  # (N, times, …): a row a sample
        save_grid(path, stacked.flatten(0, 1), columns=len(states))
    elif len(shape) == 2 and shape[1] > 1:
        _save_series_strip(path, [_checked("states", x, shape) for x in states], titles)
    elif len(shape) == 4:
        _save_volume_strip(path, [_checked("states", x, shape) for x in states], titles)
    else:
        _save_scatter(path, states, titles)


def _save_series_strip(path: Path, states: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Draw the first channel of a few series (N, C, L) at each time, on one scale."""
    few = [x[:MOST_SERIES, 0] for x in states]
    limits = _limits({"states": np.stack(few)}, (0.0, 1.0))
    panels = min(len(few), STRIP_PANELS)
    rows = -(-len(few) // panels)
    with figure(path, (2.4 * panels, 1.7 * rows + 0.5), panels, dpi=110, rows=rows) as axes:
        for axis in axes[len(few) :]:
            axis.axis("off")
        for i, (axis, lines, title) in enumerate(zip(axes, few, titles, strict=False)):
            for line, colour in zip(lines, COLOURS, strict=False):
                axis.plot(line, color=colour, linewidth=0.9)
            axis.set_ylim(*limits)
            axis.set_title(title, fontsize=9)
            _plain_ticks(axis.xaxis, labels=i + panels >= len(few))
            _plain_ticks(axis.yaxis, labels=i % panels == 0)
        of, channels = len(states[0]), states[0].shape[1]
        told = f"{len(few[0])} of {of} series" + (f", first of {channels} channels" if channels > 1 else "")
        axes[0].figure.suptitle(f"{told}, in model space at unit size", fontsize=9)


def _save_volume_strip(path: Path, states: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Draw the middle slice of the first channel of a few volumes (N, C, D, H, W), a row each, at each time."""
    channels, depth = states[0].shape[1:3]
    slices = np.stack([x[:STRIP_VOLUMES, 0, depth // 2] for x in states], axis=1)  # (n, times, H, W): a row a sample
    wall, _, centres = _wall(list(slices))
    low, high = _limits({"states": slices})
    width = 1.0 * len(states) + 0.2
    with figure(path, (width, width * wall.shape[0] / wall.shape[1] + 0.6), dpi=110) as (axis,):
        axis.imshow(wall, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axis.set_xticks(centres, titles, fontsize=8)
        axis.set_yticks([])
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        of = f", first of {channels} channels" if channels > 1 else ""
        axis.set_xlabel(f"slice {depth // 2 + 1} of {depth}{of}", fontsize=8)


def _wall(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, list[float], list[float]]:
    """Lay slices out, rows of (n, H, W), n not always the same, with gaps of NaN.

    Returns:
        The wall, the middles of its rows, and those of its columns.
    """
    height, width = rows[0].shape[1:]
    most, gap = max(map(len, rows)), max(1, width // 16)
    wall = np.full((len(rows) * (height + gap) - gap, most * (width + gap) - gap), np.nan)
    for row, slices in enumerate(rows):
        top = row * (height + gap)
        for column, one in enumerate(slices):
            left = column * (width + gap)
            wall[top : top + height, left : left + width] = one
    middles = [row * (height + gap) + (height - 1) / 2.0 for row in range(len(rows))]
    return wall, middles, [column * (width + gap) + (width - 1) / 2.0 for column in range(most)]


def _save_scatter(path: Path, clouds: Sequence[Tensor], titles: Sequence[str]) -> None:
    with figure(path, (3.0 * len(clouds), 3.2), len(clouds), dpi=110) as axes:
        for axis, cloud, title in zip(axes, clouds, titles, strict=True):
            flat = cloud.detach().reshape(len(cloud), -1).cpu()
            axis.scatter(flat[:, 0], flat[:, min(1, flat.shape[1] - 1)], s=3, alpha=0.5, linewidths=0)
            axis.set_title(title, fontsize=9)
            axis.set_aspect("equal", adjustable="datalim")


def save_examples(path: Path, samples: Tensor, data: Tensor | None = None, columns: Sequence[str] = ()) -> None:
    """Draw samples over or beside the data, both in the units of the data, as their shape wants it.

    Vectors (N, D): histograms of each component and scatter plots of each pair, of the first six. Series (N, C, L) with
    L > 1: three of either set, and the mean power spectra, of the first three channels. Volumes (N, C, D, H, W): the
    middle slice of the first channel of eight of either set, and a histogram of all values. All else: that histogram.

    Args:
        samples: (N, *), N ≥ 1.
        data: (M, *), M ≥ 1, of the same shape; None draws the samples alone.
        columns: names of the components of vectors, or of the channels of series.

    Raises:
        InputError: on no samples, other shapes, too few names, or numbers that are not finite.
    """
    given = {"data": data, "samples": samples}
    found = {name: _checked(name, x, samples.shape[1:]) for name, x in given.items() if x is not None}
    parts = samples.shape[1] if samples.ndim > 1 else 1
    drawn = columns and samples.ndim in (2, 3)
    require(not drawn or len(columns) == parts, "columns", len(columns), f"{parts} names, one a component or channel")
    names = [_short(name) for name in columns] or _numbered(samples.ndim, parts)
    if samples.ndim == 2 and parts > 1:
        _save_pairs(path, found, names)
    elif samples.ndim == 3 and samples.shape[2] > 1:
        _save_series(path, found, names)
    elif samples.ndim == 5:
        _save_volumes(path, found)
    else:
        with figure(path, (5.2, 3.6), dpi=110) as (axis,):
            _draw_histogram(axis, found)
            axis.set_xlabel(names[0] if samples.ndim == 2 else "value")
            axis.set_ylabel("density")
            axis.legend(fontsize=8)


_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def _numbered(ndim: int, parts: int) -> list[str]:
    """Return names for components x₁, x₂, … of vectors, or the channels of series."""
    if ndim == 3:
        return [f"channel {i + 1}" for i in range(parts)] if parts > 1 else ["value"]
    return [f"x{i + 1}".translate(_SUBSCRIPTS) for i in range(parts)]


def _short(name: str, most: int = 22) -> str:
    """Return a name that fits beside a panel, in which no "$" begins a formula."""
    name = " ".join(str(name).split())
    return (name if len(name) <= most else f"{name[: most - 1]}…").replace("$", r"\$")


def _checked(name: str, x: Tensor, shape: Sequence[int]) -> np.ndarray:
    """Return a set of samples as float64, or refuse it."""
    like = f"(N, {', '.join(map(str, shape))}), N ≥ 1" if shape else "(N,), N ≥ 1"
    require(x.ndim > 0 and x.numel() > 0 and x.shape[1:] == shape, f"{name}.shape", tuple(x.shape), like)
    values: np.ndarray = x.detach().cpu().double().numpy()
    if bad := int((~np.isfinite(values)).sum()):
        raise InputError(f"{name}: {bad} of its {values.size} numbers are NaN or infinite and cannot be drawn")
    return values


def _evenly(x: np.ndarray, most: int) -> np.ndarray:
    """Return at most ``most`` of (N, …), at even distances."""
    return x if len(x) <= most else x[np.linspace(0, len(x) - 1, most).round().astype(int)]


def _limits(found: _Sets, central: tuple[float, float] = CENTRAL) -> tuple[float, float]:
    """Return the ends of an axis: of the first set, widened for the other by at most the first's width on each side."""
    ends = [np.quantile(_evenly(x.reshape(-1), MOST_VALUES), central) for x in found.values()]
    low, high = ends[0]
    room = high - low or math.inf
    first, last = max(ends[-1][0], low - room), min(ends[-1][1], high + room)
    low, high = min(low, first), max(high, last)
    margin = 0.1 * (high - low) or 0.1 * abs(low) or 1.0
    return float(low - margin), float(high + margin)


def _draw_histogram(axis: Any, found: _Sets, limits: tuple[float, float] | None = None) -> None:
    """Draw densities over one another, of all values of either set, on one grid of bins.

    Bins are as wide as the narrower set wants them, but 10 to 60.

    Reference:
        D. Freedman, P. Diaconis, "On the histogram as a density estimator: L₂ theory", 1981, Z. Wahrscheinlichkeit 57.
    """
    values = {name: _evenly(x.reshape(-1), MOST_VALUES) for name, x in found.items()}
    low, high = limits or _limits(values)
    middle = {name: float(np.subtract(*np.quantile(x, (0.75, 0.25)))) for name, x in values.items()}
    widths = [2.0 * middle[name] / len(x) ** (1.0 / 3.0) for name, x in values.items() if middle[name] > 0.0]
    edges = np.linspace(low, high, int(np.clip((high - low) / min(widths, default=high - low), 10, 60)) + 1)
    for name, x in values.items():
        density = np.histogram(x, edges)[0] / (len(x) * (edges[1] - edges[0]))  # of all, also those beyond the axis
        axis.stairs(density, edges, fill=True, alpha=0.25, color=TINTS[name])
        axis.stairs(density, edges, linewidth=1.3, color=TINTS[name], label=name)
    axis.set_xlim(low, high)
    axis.set_ylim(bottom=0.0)


def _plain_ticks(*axes: Any, labels: bool = True) -> None:
    """Mark x or y axes at few places, in whole numbers and not as differences from one."""
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    for axis in axes:
        axis.set_major_locator(MaxNLocator(nbins=4))
        axis.set_major_formatter(formatter := ScalarFormatter(useOffset=False))
        formatter.set_powerlimits((-4, 5))
        axis.set_tick_params(labelsize=7, labelleft=labels, labelbottom=labels)
        axis.get_offset_text().set_fontsize(7)


def _counts(found: _Sets) -> str:
    return ", ".join(f"{len(x):,} {name}" for name, x in reversed(found.items()))


def _save_pairs(path: Path, found: _Sets, names: Sequence[str]) -> None:
    """Draw vectors (N, D): histograms on the diagonal, scatter plots below, the legend above it."""
    dim = len(names)
    size = min(dim, MOST_COMPONENTS)
    limits = [_limits({name: x[:, i] for name, x in found.items()}) for i in range(size)]
    few = {name: _evenly(x[:, :size], MOST_POINTS) for name, x in found.items()}
    order = np.random.default_rng(0).permutation(sum(map(len, few.values())))  # else one set would hide the other
    points = np.concatenate(list(few.values()))[order]
    tints = np.repeat([TINTS[name] for name in few], [len(x) for x in few.values()])[order]
    style = {"s": 5 if len(points) > 200 else 20, "alpha": 0.4, "linewidths": 0, "rasterized": True}
    side = 1.9 * size + 0.6
    with figure(path, (side, side), size, dpi=110, rows=size) as axes:
        for row, column in np.ndindex(size, size):
            axis = axes[row * size + column]
            if column > row:
                axis.axis("off")
                continue
            if column == row:
                _draw_histogram(axis, {name: x[:, row] for name, x in found.items()}, limits[row])
                axis.set_yticks([])
            else:
                axis.scatter(points[:, column], points[:, row], color=tints, **style)
                axis.set_xlim(*limits[column])
                axis.set_ylim(*limits[row])
                _plain_ticks(axis.yaxis, labels=column == 0)
            _plain_ticks(axis.xaxis, labels=row == size - 1)
            if row == size - 1:
                axis.set_xlabel(names[column], fontsize=9)
            if column == 0 < row:
                axis.set_ylabel(names[row], fontsize=9)
        axes[size - 1].legend(*axes[0].get_legend_handles_labels(), loc="upper right", fontsize=10)
        far = _beyond(found["samples"][:, :size], limits)
        axes[0].figure.suptitle(f"{size} of {dim} components: {_counts(found)}{far}", fontsize=10)


def _beyond(x: np.ndarray, limits: Sequence[tuple[float, float]]) -> str:
    """Say on a line of its own how many of (N, D) lie beyond the axes of their D components, if they are many."""
    low, high = np.array(limits).T
    share = float(((x < low) | (x > high)).any(axis=1).mean())
    return f"\n{100.0 * share:.0f} % of the samples lie beyond the axes" if share > FAR_AXES else ""


def _save_series(path: Path, found: _Sets, names: Sequence[str]) -> None:
    """Draw series (N, C, L), a row a channel: a few of either set, and the mean power spectra of both."""
    rows, panels = min(len(names), MOST_CHANNELS), len(found) + 1
    with figure(path, (3.6 * panels, 2.2 * rows + 0.9), panels, dpi=110, rows=rows) as axes:
        for row in range(rows):
            own = {name: x[:, row] for name, x in found.items()}
            few = {name: _evenly(x, MOST_SERIES) for name, x in own.items()}
            *beside, spectrum = axes[row * panels : (row + 1) * panels]
            limits = _limits(few, (0.0, 1.0))
            for axis, (name, lines) in zip(beside, few.items(), strict=True):
                for i, line in enumerate(lines):
                    axis.plot(line, color=TINTS[name], linewidth=1.1, alpha=1.0 - 0.35 * i)
                axis.set_ylim(*limits)
                axis.set_title(f"{len(lines)} of {len(own[name]):,} {name}" if row == 0 else "", fontsize=9)
                _plain_ticks(axis.xaxis, axis.yaxis)
            beside[0].set_ylabel(names[row], fontsize=9)
            _draw_spectra(spectrum, own)
            spectrum.set_title("mean power spectrum" if row == 0 else "", fontsize=9)
        for axis in axes[-panels:-1]:
            axis.set_xlabel("step", fontsize=9)
        axes[-1].set_xlabel("cycles per step", fontsize=9)
        axes[panels - 1].legend(fontsize=8)
        if rows < len(names):
            axes[0].figure.suptitle(f"{rows} of {len(names)} channels", fontsize=10)


def _draw_spectra(axis: Any, found: _Sets) -> None:
    """Draw the mean of |Σ x_l e^(−2πi f l)|²/L of series (N, L) over f = 1/L … 1/2, both axes logarithmic."""
    from matplotlib.ticker import NullFormatter

    positive = False
    for name, x in found.items():
        frequency = np.fft.rfftfreq(x.shape[1])[1:]
        power = np.square(np.abs(np.fft.rfft(x)[:, 1:])).mean(axis=0) / x.shape[1]
        rounding = np.square(x).mean() * x.shape[1] * 1e-30  # of a constant channel nothing is left
        positive |= bool((power > rounding).any())
        power = np.where(power > rounding, power, np.nan)
        form = {"marker": ".", "markersize": 3, "linewidth": 1.2} if len(power) < 200 else {"linewidth": 0.8}
        axis.plot(frequency, power, color=TINTS[name], label=name, **form)
    axis.set_xscale("log")
    axis.set_xlim(0.8 * frequency[0], 0.6)
    if frequency[0] > 0.002:  # over more than two powers of ten these alone are marked
        logarithmic(axis.xaxis)
    if positive:
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        if high > 20.0 * low:  # there is a power of ten, or more, and labels between them would overlap
            axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        axis.set_yticks([])
        axis.text(0.5, 0.5, "constant", transform=axis.transAxes, ha="center", fontsize=9)
    axis.tick_params(which="both", labelsize=7)
    axis.grid(alpha=0.3)


def _save_volumes(path: Path, found: _Sets) -> None:
    """Draw volumes (N, C, D, H, W): a row of middle slices of either set, samples above, and the law of all values."""
    few = {name: x[:MOST_VOLUMES, 0, x.shape[2] // 2] for name, x in reversed(found.items())}  # (n, H, W)
    channels, depth = found["samples"].shape[1:3]
    wall, middles, _ = _wall(list(few.values()))
    low, high = _limits({name: few[name] for name in found})
    with figure(path, (12.0, 3.2), 2, dpi=110, widths=(2.9, 1.0)) as (axis, law):
        axis.imshow(wall, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks(middles, list(few), fontsize=9)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        of = f", first of {channels} channels" if channels > 1 else ""
        axis.set_title(f"slice {depth // 2 + 1} of {depth}{of}", fontsize=9, loc="left")
        _draw_histogram(law, found)
        _plain_ticks(law.xaxis, law.yaxis)
        law.set_title("all values", fontsize=9)
        law.set_ylabel("density", fontsize=9)
        law.legend(fontsize=8)
