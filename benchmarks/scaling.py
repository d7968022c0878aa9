"""How the cost of sampling grows with batch size, image side and steps, ours beside `diffusers`.

    python benchmarks/scaling.py

The network is the 1.1M-parameter one with attention in its middle alone, whose cost should be proportional to pixels.
Each quantity is varied by itself, both libraries in turns, and a straight line through the medians (weighted so that
each counts by its own size) says what is fixed, what each unit adds and how far the medians lie off the line. Writes
`benchmarks/scaling.json` and `.png`. Needs `diffusers`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pairing import OURS, THEIRS, in_turns, parser, save_both, spread
from throughput import drawer, timed

from sde_diffusion.files import provenance, write_atomically, write_json

FIXED = {"batch size": 4, "image side": 28, "steps": 4}
VARIED = {"batch size": (2, 4, 8, 16), "image side": (16, 28, 40, 56), "steps": (2, 4, 8, 16)}
PLAIN = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}


def measure(varied: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return times of both sides for each value, and the straight lines through them."""
    runs, units = {}, []
    for value in VARIED[varied]:
        own = {**FIXED, varied: value}
        batch, side, steps = own.values()
        shape = (batch, 1, side, side)
        for library in (THEIRS, OURS):
            draw = partial(drawer(library, folder, options), shape, steps)
            runs[f"{library} {value}"] = timed(draw, options)
        units.append(value**2 if varied == "image side" else value)
    times = in_turns(runs, options.repeats, warm_up=1)
    found: dict[str, Any] = {"values": VARIED[varied], "units": units}
    for library in (THEIRS, OURS):
        seconds = [times[f"{library} {value}"] for value in VARIED[varied]]
        medians = np.array([statistics.median(v) for v in seconds])
        slope, fixed = np.polyfit(units, medians, 1, w=1.0 / medians)
        off = (fixed + slope * np.array(units)) / medians - 1.0
        found[library] = {
            "seconds": [spread(v) for v in seconds],
            "fixed_seconds": fixed,
            "seconds_a_unit": slope,
            "largest_deviation": float(np.abs(off).max()),
        }
    return found


def draw_plot(path: Path, results: dict[str, Any]) -> None:
    """Plot seconds against each quantity, with the straight lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(4.6 * len(results), 3.8))
    for axis, (varied, found) in zip(axes, results.items(), strict=True):
        units = np.array(found["units"], dtype=float)
        for library, colour in zip((THEIRS, OURS), ("tab:gray", "tab:blue"), strict=True):
            seconds, line = found[library]["seconds"], found[library]
            low, middle, high = (np.array([s[key] for s in seconds]) for key in ("p5", "median", "p95"))
            axis.errorbar(
                units,
                middle,
                (np.maximum(middle - low, 0.0), np.maximum(high - middle, 0.0)),
                fmt="o",
                markersize=4,
                color=colour,
                label=library,
            )
            axis.plot(units, line["fixed_seconds"] + line["seconds_a_unit"] * units, color=colour, linewidth=1)
        axis.set_xticks(units, [str(v) for v in found["values"]])
        axis.set_xlabel(varied + (" (spaced as pixels)" if varied == "image side" else ""))
        axis.set_ylabel("seconds")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    write_atomically(path, lambda p: figure.savefig(p, dpi=110))


def main() -> None:
    options = parser("Cost against batch size, image side and steps.").parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with TemporaryDirectory() as temporary:
        save_both("mnist", Path(temporary), options.seed, **PLAIN)
        results = {varied: measure(varied, Path(temporary), options) for varied in VARIED}
    facts = {"threads": torch.get_num_threads(), "seed": options.seed, "repeats": options.repeats}
    made_by = provenance(options.device, precision=options.precision, **facts)
    write_json(options.output, {"made_by": made_by, "others_fixed_at": FIXED, "varied": results})
    draw_plot(options.output.with_suffix(".png"), results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
