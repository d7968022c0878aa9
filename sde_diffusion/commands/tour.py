"""``sde-diffusion tour``: the main job on built-in data, in a few minutes without a GPU."""

from __future__ import annotations

import time
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from torch import Tensor

import samplers
from samplers import Sampler
from sde_diffusion import config as configuration
from sde_diffusion.commands.flags import define_run_flags
from sde_diffusion.evaluation import bits
from sde_diffusion.evaluation.curves import setting_text
from sde_diffusion.evaluation.distances import energy_distance, nearest_distances
from sde_diffusion.evaluation.pictures import save_grid
from sde_diffusion.evaluation.sweep import Row, Setting, settings
from sde_diffusion.files import provenance
from sde_diffusion.runs.fitting import train_run
from sde_diffusion.runs.open import load_run, pick_device
from sde_diffusion.runs.run import Run
from sde_diffusion.runs.sample import save_arrays
from sde_diffusion.runs.sweep import Hook, SweepOptions, load_reference, sweep_run
from sde_diffusion.terminal import say

NUM_SAMPLES = 450
USUAL = 25
PLAN: dict[str, list[float]] = {
    "ancestral": [5, 10, USUAL],
    "ddim": [5, 10, USUAL],
    "heun": [3, 5, 13],
    "pc": [5, 13],
    "probability_flow": [1e-1, 1e-2],
    "scipy": [1e-2],
    "torchsde": [13],
}
"""Steps or tolerances of samplers, the last at about 25 evaluations; others take so many steps."""
NUM_SCORED = 128
"""Held-out images whose likelihood is computed; ``sde-diffusion likelihood`` does them all."""
GRID = 64


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values, workdir="runs/tour")
    flags.DEFINE_integer("num_samples", NUM_SAMPLES, "Samples of each sampler.", flag_values=values)


def plan(seed: int) -> list[Setting]:
    """Return what the tour draws: every registered sampler, some of them at several costs."""
    found = []
    for name in samplers.names():
        defaults = samplers.config(name)
        steps, tolerances = PLAN.get(name, [USUAL]), PLAN.get(name, [defaults.get("rtol", 0.0)])
        found += settings({name: list(defaults)}, steps, tolerances, [seed])
    return found


def _table(rows: list[Row]) -> str:
    """Return the longest run of each sampler as a table."""
    metric = rows[0]["metric"]
    cells = [("sampler", "setting", "NFE", "seconds", metric, "pixels, to test", "nearest training image")]
    for row in {row["sampler"]: row for row in rows}.values():
        found, seconds = row["metrics"], f"{row['seconds']:.1f}"
        setting = setting_text(row["option"], row["value"])
        quality, distance = (f"{found[m]:.4g} ± {found[f'{m} error']:.2g}" for m in (metric, "energy distance"))
        cells.append(
            (row["sampler"], setting, f"{row['nfe']:.0f}", seconds, quality, distance, f"{found['nearest ratio']:.2f}")
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Train on the configured data, score held-out images, sweep every sampler, write the report."""
    start = time.perf_counter()
    workdir, device, quiet = Path(values.workdir), pick_device(values.device), values.quiet
    options = SweepOptions(num_samples=values.num_samples, batch_size=values.num_samples)
    dataset = configuration.build_dataset(config)
    load_reference(dataset, options, device)  # what is lacking is said before the training
    train_run(workdir, config, device, quiet)
    say(f"trained after {time.perf_counter() - start:.0f} s", quiet)

    opened = load_run(workdir, config, device, data=dataset)
    scored = opened.score(num_images=NUM_SCORED, quiet=quiet)
    count = scored.summary["provenance"]["num_images"]
    say(f"\nlikelihood of {count} held-out images\n{bits.as_text(scored.summary)}\n", quiet)

    save_grid(workdir / "samples" / "(test images).png", dataset.scale(dataset.test)[:GRID])
    planned = plan(config.seed)
    say(f"sampling {values.num_samples} with every sampler", quiet)
    rows = sweep_run(opened, planned, options, quiet, hook=_pixels(opened, planned))
    page = opened.report()
    say(f"\n{_table(rows)}\n{_guide(workdir, page, len(dataset.test))}", quiet)
    say(f"done in {time.perf_counter() - start:.0f} s", quiet)


def _pixels(run: Run, planned: list[Setting]) -> Hook:
    """Return what measures the samples of a row in pixel space, and keeps those of each sampler's last row."""
    dataset = run.dataset
    train_x, test_x = dataset.scale(dataset.train), dataset.scale(dataset.test)
    usual = nearest_distances(test_x, train_x).mean()
    last = {setting.sampler: setting for setting in planned}

    def measure(setting: Setting, sampler: Sampler, samples: Tensor) -> dict[str, float]:
        x = samples.clamp(-1.0, 1.0)
        if setting == last[setting.sampler]:
            facts = provenance(run.device, seed=setting.seed, checkpoint=str(run.checkpoint), sampler=repr(sampler))
            stem = run.workdir / "samples" / setting.sampler
            save_arrays(stem.with_suffix(".npz"), samples, facts)
            save_grid(stem.with_suffix(".png"), x[:GRID])
        gap = energy_distance(x, test_x)
        ratio = float(nearest_distances(x, train_x).mean() / usual)
        return {"energy distance": gap.value, "energy distance error": gap.std_error, "nearest ratio": ratio}

    return measure


def _guide(workdir: Path, page: Path, num_test: int) -> str:
    """Return what the table's columns are, and where to look next."""
    return (
        f"pixels, to test: energy distance on pixels in [−1, 1] to the {num_test} held-out images\n"
        "nearest training image: mean distance to it, over the same of held-out images; far below 1 is memorising\n\n"
        f"{page}      all of this to look at: open it in a browser\n"
        f"{workdir}/samples/*.png    what each sampler drew; '(test images).png' beside them; *.npz, the arrays\n"
        f"{workdir}/benchmark/*_trajectory.png    its way from noise to an image\n"
        f"{workdir}/benchmark.*      rows of every sampler and setting;  more: sde-diffusion benchmark\n"
        f"{workdir}/likelihood.*     of each image, and where the bound's bits are spent\n"
        f"{workdir}/checkpoints      weights;  go on: sde-diffusion sample --workdir={workdir} --sampler=pc\n"
        f"{workdir}/train.jsonl      losses;   look: tensorboard --logdir={workdir}/tensorboard"
    )
