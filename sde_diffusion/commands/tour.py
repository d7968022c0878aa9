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
from sde_diffusion.commands.flags import define_run_flags, training_config
from sde_diffusion.evaluation import bits
from sde_diffusion.evaluation.curves import setting_text
from sde_diffusion.evaluation.distances import energy_distance, nearest_distances
from sde_diffusion.evaluation.sweep import Row, Setting, settings
from sde_diffusion.evaluation.uncertainty import plus_minus
from sde_diffusion.files import beside, provenance
from sde_diffusion.runs.fitting import train_run
from sde_diffusion.runs.open import load_run, pick_device
from sde_diffusion.runs.run import Run
from sde_diffusion.runs.sample import save_arrays, show
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
"""Held-out examples whose likelihood is computed; ``sde-diffusion likelihood`` does them all."""
GRID = 64
base_config = training_config
"""Which the command line asks for."""


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
    cells = [("sampler", "setting", "NFE", "seconds", metric, "to test", "nearest")]
    for row in {row["sampler"]: row for row in rows}.values():
        found, seconds = row["metrics"], f"{row['seconds']:.1f}"
        setting = setting_text(row["option"], row["value"])
        quality, distance = (plus_minus(found[m], found[f"{m} error"]) for m in (metric, "energy distance"))
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
    codec = configuration.build_codec(config, dataset)
    load_reference(dataset, codec, options, device)  # what is lacking is said before the training
    train_run(workdir, config, device, quiet)
    say(f"trained after {time.perf_counter() - start:.0f} s", quiet)

    opened = load_run(workdir, config, device, data=dataset)
    scored = opened.score(num_examples=NUM_SCORED, quiet=quiet)
    count = scored.summary["provenance"]["num_examples"]
    say(f"\nlikelihood of {count} held-out {dataset.noun}\n{bits.as_text(scored.summary)}\n")

    show(opened, workdir / "samples" / f"(test {dataset.noun}).png", opened.codec.encode(dataset.test)[0][:GRID])
    planned = plan(config.seed)
    say(f"sampling {values.num_samples} with every sampler", quiet)
    rows = sweep_run(opened, planned, options, quiet, hook=_distances(opened, planned))
    with beside(page := workdir / "report.html"):
        opened.report()
    say(f"\n{_table(rows)}\n{_guide(workdir, page, len(dataset.test), dataset.noun)}")
    say(f"done in {time.perf_counter() - start:.0f} s", quiet)


def _distances(run: Run, planned: list[Setting]) -> Hook:
    """Return what measures the samples of a row in model space, and keeps those of each sampler's last row."""
    (train_z, _), (test_z, _) = run.codec.encode(run.dataset.train), run.codec.encode(run.dataset.test)
    usual = nearest_distances(test_z, train_z).mean()
    last = {setting.sampler: setting for setting in planned}

    def measure(setting: Setting, sampler: Sampler, samples: Tensor) -> dict[str, float]:
        z = samples.clamp(-1.0, 1.0) if run.levels else samples
        if setting == last[setting.sampler]:
            facts = provenance(run.device, seed=setting.seed, checkpoint=str(run.checkpoint), sampler=repr(sampler))
            stem = run.workdir / "samples" / setting.sampler
            save_arrays(stem.with_suffix(".npz"), {"x": run.codec.decode(samples), "z": samples}, facts)
            show(run, stem.with_suffix(".png"), z[:GRID] if run.levels else z, run.data_beside)
        gap = energy_distance(z, test_z)
        ratio = float(nearest_distances(z, train_z).mean() / usual)
        return {"energy distance": gap.value, "energy distance error": gap.std_error, "nearest ratio": ratio}

    return measure


def _guide(workdir: Path, page: Path, num_test: int, noun: str) -> str:
    """Return what the table's columns are, and where to look next."""
    look = f"{page}      all of this to look at: open it in a browser\n" if page.exists() else ""
    where = "pixels in [−1, 1]" if noun == "images" else "standardised coordinates"
    return (
        "±: a 95 % interval; a number without one has none that covers\n"
        f"to test: energy distance, on {where}, to the {num_test} held-out {noun}\n"
        f"nearest: mean distance to the nearest training example, over the same of held-out {noun}; far below 1 is "
        "memorising\n\n"
        f"{look}"
        f"{workdir}/samples/*.png    what each sampler drew; '(test {noun}).png' beside them; *.npz, the arrays\n"
        f"{workdir}/benchmark/*_trajectory.png    its way from noise to data\n"
        f"{workdir}/benchmark.*      rows of every sampler and setting;  more: sde-diffusion benchmark\n"
        f"{workdir}/likelihood.*     of each one, and where the bound's cost is spent\n"
        f"{workdir}/checkpoints      weights;  go on: sde-diffusion sample --workdir={workdir} --sampler=pc\n"
        f"{workdir}/train.jsonl      losses;   look: tensorboard --logdir={workdir}/tensorboard"
    )
