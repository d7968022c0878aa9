"""Sweeps of a run: every sampler at every cost from the same noise, measured against held-out data."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import samplers
from samplers import Sampler
from sde_diffusion.codecs import Codec
from sde_diffusion.codecs.grey_levels import to_uint8
from sde_diffusion.data import Dataset, random_split
from sde_diffusion.errors import require
from sde_diffusion.evaluation.curves import as_csv, points
from sde_diffusion.evaluation.figures import save_sweep
from sde_diffusion.evaluation.metrics import (
    Coordinates,
    Extractor,
    Features,
    content_hash,
    measure,
    reference_features,
    require_enough,
)
from sde_diffusion.evaluation.sweep import (
    ESTIMATOR,
    PICTURES,
    RECORD,
    TRAJECTORY,
    Batch,
    Row,
    Setting,
    batches,
    comparable,
    join_batches,
    picture_of,
    read_rows,
    sweep,
)
from sde_diffusion.evaluation.uncertainty import plus_minus
from sde_diffusion.files import beside, discard, provenance, write_atomically
from sde_diffusion.locks import one_writer
from sde_diffusion.runs.conditions import DATA, conditions_of_examples
from sde_diffusion.runs.sample import draw, show, strip_rows
from sde_diffusion.terminal import progress

if TYPE_CHECKING:
    from sde_diffusion.runs.run import Run

EXTRACTOR_OF = {"digits": "digits", "fashion_mnist": "fashion"}
"""Built-in extractors by data set; all other pictures take torch-fidelity's Inception."""
EXACT = {"rtol": 1e-5, "atol": 1e-5}
"""Of the probability-flow solution that deterministic samplers are held against."""
NUM_EXACT = 64
NUM_SHOWN, NUM_PLOTTED = 16, 1000
"""Samples of a run that are kept as a picture, and as points of a figure beside the data."""
SWEPT = {"num_steps": ("num_steps",), "tolerance": ("rtol", "atol")}
"""Options of a sampler that a setting fixes."""

Hook = Callable[[Setting, Sampler, Tensor], dict[str, float]]
"""Called with the samples of each new row, in model space; returns metrics to keep beside the others."""


@dataclass(frozen=True)
class SweepOptions:
    """How many samples a sweep draws, and what they are compared with.

    Attributes:
        num_samples: samples of each row.
        batch_size: samples at a time; does not change them.
        split: "test" or "train", of the run's data set.
        extractor: name of the feature network; by default that of the data set.
        weights: file of its weights, where it has no built-in ones.
        kid_subset: images of a KID subset; 0: all at once.
        classes: of a run with classes, those of the samples, which take turns: "data" for the labels of the split, in
            its order, "none" for no class, "all", or numbers and names separated by commas.
    """

    num_samples: int = 1000
    batch_size: int = 64
    split: str = "test"
    extractor: str = ""
    weights: Path | None = None
    kid_subset: int = 0
    classes: str = DATA

    def __post_init__(self) -> None:
        require(self.split in ("test", "train"), "split", self.split, "'test' or 'train'")


Measure = Extractor | Coordinates
"""What makes features of samples."""


def seen(codec: Codec, levels: int | None, z: Tensor) -> Tensor:
    """Return what is measured of samples in model space: grey levels as 8-bit pictures, other data as they are there.

    In model space, because there no column counts more than another for its units.
    """
    return z.float() if levels is None else to_uint8(codec.decode(z.float()), levels)


def load_reference(
    dataset: Dataset, codec: Codec, options: SweepOptions, device: torch.device
) -> tuple[Measure, Features, str]:
    """Return what makes features of a data set, those of its split, and the hash of that split.

    Pictures go through a feature network; of vectors, series and volumes the coordinates are compared.

    Raises:
        InputError: if a feature network is asked for and there is none for such data; if its weights cannot be had; if
            the samples are too few for a metric.
    """
    real = seen(codec, dataset.levels, codec.encode(dataset.split(options.split).x)[0])
    if dataset.levels is None:
        expected = f"none: of {dataset.noun} the coordinates are compared"
        require(not options.extractor, "extractor", options.extractor, expected)
        measure_of: Measure = Coordinates()
    else:
        name = options.extractor or EXTRACTOR_OF.get(dataset.name, "inception-v3-compat")
        measure_of = Extractor(name, device, options.weights)
    reference = reference_features(measure_of, real)
    require_enough("reference", len(real), reference, options.kid_subset)
    require_enough("num_samples", options.num_samples, reference, options.kid_subset)
    return measure_of, reference, content_hash(real)


def sampler_of(run: Run, setting: Setting) -> Sampler:
    """Return the sampler of a setting, with the options that the run's configuration has for it."""
    value: Any = int(setting.value) if setting.option == "num_steps" else setting.value
    return run.sampler(setting.sampler, **dict.fromkeys(SWEPT[setting.option], value))


class _Sweep:
    """What the rows of one sweep have in common."""

    def __init__(self, run: Run, options: SweepOptions, plan: Sequence[Setting], quiet: bool, hook: Hook | None):
        self.run, self.options, self.quiet, self.hook = run, options, quiet, hook
        self.extractor, self.reference, self.digest = load_reference(run.dataset, run.codec, options, run.device)
        examples = run.dataset.split(options.split)
        self.given = conditions_of_examples(run, examples, options.classes, options.num_samples)
        self.metric = self.extractor.metric
        # The last of each sampler, which is the longest, is shown on its way from noise to image.
        self.strips = {setting.sampler: setting for setting in plan if setting.seed == plan[0].seed}
        self.exact = cache(self._exact)

    def options_of(self, setting: Setting) -> Row:
        """Return the options of a sampler that its setting does not fix."""
        sampler = sampler_of(self.run, setting)
        options = {k: v for k, v in sampler.options().items() if k not in SWEPT[setting.option]}
        options |= {f"config.{key}": value for key, value in self.run.changed.items()}
        return {**options, **self.run.wrapping(sampler), **({"classes": self.options.classes} if self.given else {})}

    @property
    def key(self) -> Row:
        """What rows must have in common to be compared."""
        return {
            "metric": self.metric,
            "extractor": self.extractor.digest,
            "reference": f"{self.run.dataset.name} {self.options.split} {self.digest}",
            "num_samples": self.options.num_samples,
            "kid_subset": self.options.kid_subset,
            "checkpoint": self.run.digest,
            "dtype": self.run.dtype,
            "estimator": ESTIMATOR,
        }

    @cached_property
    def training_images(self) -> dict[str, float] | None:
        """The metrics of as many training images, the mark to reach; None if they are the reference."""
        if self.options.split == "train":
            return None
        data = self.run.dataset
        some = random_split(len(data.train), 0)[0][: self.options.num_samples]  # however the data are sorted
        z, _ = self.run.codec.encode(data.train[some])
        features = self.extractor(seen(self.run.codec, data.levels, z))
        return measure(features, self.reference, self.metric, self.options.kid_subset)

    @property
    def wanted(self) -> list[str]:
        """Names of what a recorded row must have measured: metrics of one's own, and errors that old rows lack."""
        return list(self.training_images or measure(self.reference, self.reference, self.metric))

    def _exact(self, seed: int) -> Tensor:
        """The probability-flow solution from the noise of a seed, tightly solved."""
        solver = samplers.build("probability_flow", **EXACT)
        count = min(NUM_EXACT, self.options.num_samples)
        how: dict[str, Any] = {"quiet": True, "float32": True, "conditions": self._given(0, count)}
        return draw(self.run, solver, count, batch_size=count, seed=seed, **how).z

    def _given(self, first: int, last: int) -> dict[str, Tensor]:
        return {name: values[first:last] for name, values in self.given.items()}

    def batch(self, setting: Setting, first: int, last: int) -> Batch:
        """Draw samples ``first`` … ``last − 1`` of a row; keep their features, and what is shown of them."""
        count, sampler = last - first, sampler_of(self.run, setting)
        how: dict[str, Any] = {"quiet": self.quiet, "first_index": first, "conditions": self._given(first, last)}
        part = draw(self.run, sampler, count, batch_size=count, seed=setting.seed, **how)
        start = time.perf_counter()
        features = self.extractor(seen(self.run.codec, self.run.levels, part.z))
        kept = max(max(NUM_EXACT, NUM_SHOWN) - first, 0)
        kept = max(kept, NUM_PLOTTED - first) if self.run.data_beside is not None else kept
        x = part.z if self.hook else part.z[:kept].clone()  # not a view, which would keep them all
        return Batch(features, x, part.nfe, part.seconds, time.perf_counter() - start)

    def row(self, setting: Setting, stem: str, on_batch: Callable[[], object]) -> Row:
        """Draw and measure one row."""
        size, sampler = self.options.num_samples, sampler_of(self.run, setting)
        folder = self.run.workdir / PICTURES
        parts = []
        for part in batches(folder / stem, size, self.options.batch_size, lambda i, j: self.batch(setting, i, j)):
            parts.append(part)
            on_batch()
        whole = join_batches(parts)
        start = time.perf_counter()
        found = measure(whole.features, self.reference, self.metric, self.options.kid_subset)
        metric_seconds = whole.metric_seconds + time.perf_counter() - start
        if self.hook is not None:
            found |= self.hook(setting, sampler, whole.x)
        beside = self.run.data_beside
        count = NUM_SHOWN if beside is None else NUM_PLOTTED
        show(self.run, folder / f"{stem}.png", whole.x[:count], beside, columns=NUM_SHOWN // 2)
        if setting == self.strips[setting.sampler]:
            self._save_strip(setting, folder / f"{stem}{TRAJECTORY}.png")
        return {
            "nfe": whole.nfe,
            "seconds": round(whole.seconds, 4),
            "images_per_second": size / whole.seconds,
            "metric_seconds": round(metric_seconds, 4),
            "solver_error": self._solver_error(setting, sampler, whole.x),
            "metrics": found,
            "training_images": self.training_images,
            "provenance": provenance(self.run.device, step=self.run.step, weights="ema"),
        }

    def _solver_error(self, setting: Setting, sampler: Sampler, x: Tensor) -> float | None:
        """Return the mean squared distance to the exact flow of the denoiser itself; None if it is another's."""
        if sampler.stochastic or self.run.wrapping(sampler):
            return None
        target = self.exact(setting.seed)
        return float((x[: len(target)] - target).square().mean())

    def _save_strip(self, setting: Setting, path: Path) -> None:
        """Draw a few again, and not along with the others, which are being timed, and show them on their way."""
        rows = min(strip_rows(self.run.shape), self.options.num_samples)
        few = draw(
            self.run,
            sampler_of(self.run, setting),
            rows,
            batch_size=rows,
            seed=setting.seed,
            quiet=True,
            trajectory=True,
            conditions=self._given(0, rows),
        )
        if few.strip is not None:
            with beside(path):
                few.strip.save_picture(path)


def line_of(row: Row) -> str:
    """Return a row as a line for the person at the terminal."""
    name, found = row["metric"], row["metrics"]
    setting = f"{row['sampler']:18} {row['option']}={row['value']:<6g} seed {row['seed']}"
    result = plus_minus(found[name], found[f"{name} error"])
    note = " (95 %)" if "±" in result else ""
    return f"{setting}  NFE {row['nfe']:6.1f}  {row['seconds']:7.1f} s  {name} {result}{note}"


def sweep_run(
    run: Run, plan: Sequence[Setting], options: SweepOptions, quiet: bool = False, hook: Hook | None = None
) -> list[Row]:
    """Run a sweep; write ``benchmark.jsonl`` (as it goes) and pictures of samples.

    Its table and its figure are of all rows that can be compared with these, of this sweep and of those before it.

    Returns:
        The rows of the plan.

    Raises:
        InputError: if a sampler cannot be built, or there are too few samples for a metric.
    """
    for setting in plan:  # refuse what cannot be built before anything is computed
        sampler_of(run, setting)
    with one_writer(run.workdir, "benchmark"):
        recorded = read_rows(run.workdir / RECORD)
        swept = _Sweep(run, options, plan, quiet, hook)
        rows = _go(swept, plan, recorded)
        known = comparable_rows(run, rows)
        with beside(table := run.workdir / "benchmark.csv"):
            write_atomically(table, lambda p: p.write_text(as_csv(known), encoding="utf-8"))
        seen = rows[0]["training_images"]
        mark = seen and seen[swept.metric]
        with beside(picture := run.workdir / "benchmark.png"):
            save_sweep(picture, points(known), swept.metric, mark=mark)
    return rows


def comparable_rows(run: Run, rows: Sequence[Row]) -> list[Row]:
    """Return all rows of a run's record that can be compared with those of a sweep, these among them."""
    return comparable(read_rows(run.workdir / RECORD), rows[0])


def _go(swept: _Sweep, plan: Sequence[Setting], recorded: Sequence[Row]) -> list[Row]:
    """Run what of the plan is not recorded, under a progress bar over batches."""
    workdir = swept.run.workdir
    batches_each = -(-swept.options.num_samples // swept.options.batch_size)
    with progress(batches_each * len(plan), "batch", "benchmark", swept.quiet, leave=True) as bar:

        def one(setting: Setting, stem: str) -> Row:
            bar.set_postfix_str(f"{setting.sampler} {setting.option}={setting.value:g} seed {setting.seed}")
            return swept.row(setting, stem, bar.update)

        def show(row: Row, new: bool) -> None:
            discard(workdir / PICTURES / picture_of(row))  # its batches: the row has them now
            if not new:
                bar.update(batches_each)
            elif not swept.quiet:
                bar.write(line_of(row))

        return sweep(workdir / RECORD, recorded, plan, swept.key, swept.options_of, one, show, swept.wanted)
