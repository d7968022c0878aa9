"""``sde-diffusion tour``: the main job on built-in data, in a few minutes without a GPU."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from torch import Tensor

import samplers
from sde_diffusion import config as configuration
from sde_diffusion.commands import likelihood
from sde_diffusion.commands.flags import define_run_flags, pick_device, say
from sde_diffusion.commands.sample import draw, load_run, save_samples
from sde_diffusion.commands.train import train_run
from sde_diffusion.errors import require
from sde_diffusion.evaluation.distances import energy_distance, nearest_distances
from sde_diffusion.evaluation.pictures import save_grid, save_strip
from sde_diffusion.evaluation.scoring import ScoringOptions
from sde_diffusion.files import provenance, write_atomically, write_json

NUM_SAMPLES = 450
OPTIONS: dict[str, dict[str, Any]] = {
    "heun": {"num_steps": 18},
    "pc": {"num_steps": 25},
    "torchsde": {"num_steps": 25},
    "scipy": {"rtol": 1e-3, "atol": 1e-3},
}
"""Options that give every sampler about 50 evaluations, where its defaults do not."""
NUM_SCORED = 128
"""Held-out images whose likelihood is computed; ``sde-diffusion likelihood`` does them all."""
STRIP = "ancestral"
GRID = 64


@dataclass(frozen=True)
class Row:
    """One line of the tour's table.

    Attributes:
        sampler: its name, or the name of a reference.
        steps: number of steps; "adaptive" if it chooses its own; empty for a reference.
        nfe: network evaluations of a sample, mean.
        seconds: time of all samples.
        distance, std_error: unbiased energy distance to the held-out digits on pixels in [−1, 1].
        nearest: mean distance to the nearest training image.
        nearest_ratio: that over the same of held-out digits; far below 1 would be memorising.
    """

    sampler: str
    steps: str
    nfe: float
    seconds: float
    distance: float
    std_error: float
    nearest: float
    nearest_ratio: float


HEADER = ("sampler", "steps", "NFE", "seconds", "distance to test", "to nearest training image", "ratio to test")


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values, workdir="runs/tour")
    flags.DEFINE_integer("num_samples", NUM_SAMPLES, "Samples of each sampler.", flag_values=values)


def _cells(row: Row) -> tuple[str, ...]:
    cost = (f"{row.nfe:.0f}", f"{row.seconds:.1f}") if row.steps else ("", "")
    distance = f"{row.distance:+.4f} ± {row.std_error:.4f}"
    return row.sampler, row.steps, *cost, distance, f"{row.nearest:.2f}", f"{row.nearest_ratio:.2f}"


def _table(rows: list[Row]) -> str:
    cells = [HEADER, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Train on the configured data, sample with every sampler, write pictures and the table."""
    start = time.perf_counter()
    workdir, device, quiet = Path(values.workdir), pick_device(values.device), values.quiet
    require(values.num_samples >= 2, "num_samples", values.num_samples, "at least 2, to measure a distance")
    train_run(workdir, config, device, quiet)
    say(f"trained after {time.perf_counter() - start:.0f} s; sampling {values.num_samples} with every sampler", quiet)

    loaded, dataset = load_run(workdir, config, device), configuration.build_dataset(config)
    train_x, test_x = dataset.scale(dataset.train), dataset.scale(dataset.test)
    test_nearest = float(nearest_distances(test_x, train_x).mean())

    def measure(name: str, steps: str, nfe: float, seconds: float, x: Tensor, nearest: float) -> Row:
        gap = energy_distance(x, test_x)
        return Row(name, steps, nfe, seconds, gap.value, gap.std_error, nearest, nearest / test_nearest)

    rows = [measure("(training images)", "", 0.0, 0.0, train_x, 0.0)]
    for name in samplers.names():
        sampler = configuration.build_sampler(config, name, **OPTIONS.get(name, {}))
        count = values.num_samples
        drawn = draw(sampler, loaded, device, count, count, config.seed, quiet, with_strip=name == STRIP)
        x = drawn.x.clamp(-1.0, 1.0) if dataset.levels is not None else drawn.x
        steps = str(getattr(sampler, "num_steps", "adaptive"))
        rows.append(measure(name, steps, drawn.nfe, drawn.seconds, x, float(nearest_distances(x, train_x).mean())))
        facts = provenance(
            device,
            seed=config.seed,
            checkpoint=str(loaded.checkpoint),
            sampler=repr(sampler),
            measured=asdict(rows[-1]),
        )
        save_samples(workdir / "samples" / f"{name}.npz", drawn.x, facts)
        save_grid(workdir / "samples" / f"{name}.png", x[:GRID])
        if name == STRIP:
            times, states = zip(*drawn.strip, strict=True)
            save_strip(workdir / "samples" / f"{name}_trajectory.png", states, times)
        say("  " + " ".join(_cells(rows[-1])), quiet)
    save_grid(workdir / "samples" / "(test images).png", test_x[:GRID])

    facts = {"data": dataset.name, "split": "test"}
    k = dataset.test[:NUM_SCORED]
    options = {"seed": config.seed, "device": device, "quiet": quiet}
    _, scored = likelihood.score_split(workdir, loaded, dataset, k, ScoringOptions(), facts, **options)
    likelihoods = f"likelihood of {len(k)} held-out images\n{likelihood.table(scored)}"

    seconds = time.perf_counter() - start
    facts = provenance(device, seed=config.seed, checkpoint=str(loaded.checkpoint), num_samples=values.num_samples)
    table = _table(rows)
    best = min(rows[1:], key=lambda row: row.distance)
    write_json(workdir / "tour.json", {"rows": [asdict(r) for r in rows], "seconds": seconds, "provenance": facts})
    write_atomically(
        workdir / "tour.md", lambda p: p.write_text(f"{table}\n\n```\n{likelihoods}\n```\n", encoding="utf-8")
    )
    say(
        f"\n{table}\n\nclosest to the {len(test_x)} held-out images: {best.sampler}, energy distance "
        f"{best.distance:+.4f} ± {best.std_error:.4f}\n\n{likelihoods}\n\n"
        f"{workdir}/samples/*.png          what each sampler drew; '(test images).png' beside them\n"
        f"{workdir}/samples/{STRIP}_trajectory.png   the reverse process, noise to image\n"
        f"{workdir}/samples/*.npz          the arrays, each with its provenance\n"
        f"{workdir}/tour.md, tour.json     these tables\n"
        f"{workdir}/likelihood.*           of each image, and where the bound's bits are spent\n"
        f"{workdir}/checkpoints            weights;  go on: sde-diffusion sample --workdir={workdir} --sampler=pc\n"
        f"{workdir}/train.jsonl            losses;   look: tensorboard --logdir={workdir}/tensorboard\n"
        f"done in {seconds:.0f} s",
        quiet,
    )
