"""``sde-diffusion benchmark``: which sampler to use at which cost."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from absl import flags
from ml_collections import ConfigDict
from torch import Tensor

import samplers
from samplers import Sampler
from sde_diffusion import config as configuration
from sde_diffusion.commands.flags import define_pretrained_flag, define_run_flags, pick_device, require_workdir, say
from sde_diffusion.commands.sample import STRIP_ROWS, Run, draw, load_run
from sde_diffusion.data import Dataset
from sde_diffusion.errors import InputError, require, require_int
from sde_diffusion.evaluation.curves import as_csv, points, recommendation
from sde_diffusion.evaluation.figures import save_sweep
from sde_diffusion.evaluation.metrics import (
    Extractor,
    Features,
    content_hash,
    measure,
    reference_features,
    require_enough,
)
from sde_diffusion.evaluation.pictures import save_grid, save_strip
from sde_diffusion.evaluation.sweep import (
    PICTURES,
    RECORD,
    TRAJECTORY,
    Batch,
    Row,
    Setting,
    batches,
    join_batches,
    read_rows,
    settings,
    sweep,
)
from sde_diffusion.files import provenance, write_atomically
from sde_diffusion.training import checkpoints

EXTRACTOR_OF = {"digits": "digits", "fashion_mnist": "fashion"}
"""Built-in extractors by data set; all others take torch-fidelity's Inception."""
EXACT = {"rtol": 1e-5, "atol": 1e-5}
"""Of the probability-flow solution that deterministic samplers are held against."""
NUM_EXACT = 64
NUM_SHOWN = 16
"""Samples of a run that are kept as a picture."""
SWEPT = {"num_steps": ("num_steps",), "tolerance": ("rtol", "atol")}
"""Options of a sampler that a setting fixes."""


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values)
    define_pretrained_flag(values)
    flags.DEFINE_list("samplers", "ancestral,ddim,heun,pc,probability_flow", "Samplers.", flag_values=values)
    flags.DEFINE_list("steps", "5,10,20,50", "Numbers of steps.", flag_values=values)
    flags.DEFINE_list(
        "tolerances", "1e-1,1e-2,1e-3", "Tolerances of samplers that choose their own steps.", flag_values=values
    )
    flags.DEFINE_list("seeds", "0", "Seeds; more than one give an error that includes them.", flag_values=values)
    flags.DEFINE_integer("num_samples", 1000, "Samples of each run.", flag_values=values)
    flags.DEFINE_integer("batch_size", 250, "Samples at a time; does not change them.", flag_values=values)
    flags.DEFINE_enum("split", "test", ["test", "train"], "Split of the data to compare with.", flag_values=values)
    flags.DEFINE_string("extractor", "", "Feature network; by default that of the data set.", flag_values=values)
    flags.DEFINE_string("inception_weights", "", "File with torch-fidelity's Inception weights.", flag_values=values)
    flags.DEFINE_integer("kid_subset", 0, "Images of a KID subset; 0: 1,000, or half of all.", flag_values=values)


def _numbers(name: str, texts: list[str], kind: type) -> list[Any]:
    try:
        found = [kind(text) for text in texts]
    except ValueError:
        raise InputError(f"{name}={','.join(texts)!r}: expected numbers separated by commas") from None
    require(len(found) > 0, name, texts, "at least one number")
    return found


def pictures(dataset: Dataset, x: Tensor) -> Tensor:
    """Return samples as the data set's own grey levels would look: uint8 (N, C, H, W), 0 … 255."""
    return dataset.to_uint8(dataset.scale(dataset.unscale(x.float())))


def _line(row: Row) -> str:
    name, found = row["metric"], row["metrics"]
    setting = f"{row['sampler']:18} {row['option']}={row['value']:<6g} seed {row['seed']}"
    result = f"{name} {found[name]:.4g} ± {found[f'{name} error']:.2g}"
    return f"{setting}  NFE {row['nfe']:6.1f}  {row['seconds']:7.1f} s  {result}"


@dataclass(frozen=True)
class Against:
    """What samples are held against, and how.

    Attributes:
        num_samples: samples of each run.
        batch_size: samples at a time; does not change them.
        split: "test" or "train", of the run's data set.
        extractor: name of the feature network; by default that of the data set.
        weights: file of its weights, where it has no built-in ones.
        kid_subset: images of a KID subset; 0: 1,000, or half of those there are.
    """

    num_samples: int = 1000
    batch_size: int = 250
    split: str = "test"
    extractor: str = ""
    weights: Path | None = None
    kid_subset: int = 0


def load_reference(
    config: ConfigDict, dataset: Dataset, against: Against, device: torch.device
) -> tuple[Extractor, Features, str]:
    """Return the feature network for a data set, the features of its split, and the hash of that split's images.

    Raises:
        InputError: if the data have no such network, being vectors; if its weights cannot be had; if the samples are
            too few for a metric.
    """
    require(dataset.levels is not None, "data.name", dataset.name, "pictures", "vectors have no feature network")
    name = against.extractor or EXTRACTOR_OF.get(config.data.name, "inception-v3-compat")
    extractor = Extractor(name, device, against.weights)
    real = dataset.to_uint8(dataset.scale(getattr(dataset, against.split)))
    reference = reference_features(extractor, real)
    require_enough("reference", len(real), reference, against.kid_subset)
    require_enough("num_samples", against.num_samples, reference, against.kid_subset)
    return extractor, reference, content_hash(real)


Hook = Callable[[Setting, Sampler, Tensor], dict[str, float]]
"""Called with the samples of each new run; returns metrics to keep beside the others."""


def sweep_run(
    workdir: Path,
    config: ConfigDict,
    run: Run,
    plan: Sequence[Setting],
    against: Against,
    device: torch.device,
    quiet: bool,
    hook: Hook | None = None,
) -> list[Row]:
    """Run a sweep; write ``benchmark.jsonl`` (as it goes), its table and figure, and pictures of samples.

    Returns:
        The rows of the plan.

    Raises:
        InputError: if a sampler cannot be built, or there are too few samples for a metric.
    """
    from tqdm import tqdm

    def sampler_of(setting: Setting) -> Sampler:
        value: Any = int(setting.value) if setting.option == "num_steps" else setting.value
        return configuration.build_sampler(config, setting.sampler, **dict.fromkeys(SWEPT[setting.option], value))

    def options_of(setting: Setting) -> Row:
        options = {k: v for k, v in sampler_of(setting).options().items() if k not in SWEPT[setting.option]}
        return {**options, "thresholding": thresholding} if thresholding else options

    chosen = config.denoiser.thresholding
    thresholding = {"name": chosen.name, **chosen[chosen.name].to_dict()} if chosen.name != "none" else None

    for setting in plan:  # refuse what cannot be built before anything is computed
        sampler_of(setting)
    recorded = read_rows(workdir / RECORD)
    dataset = configuration.build_dataset(config)
    extractor, reference, digest = load_reference(config, dataset, against, device)
    metric = extractor.metric
    key: Row = {
        "metric": metric,
        "extractor": extractor.digest,
        "reference": f"{dataset.name} {against.split} {digest}",
        "num_samples": against.num_samples,
        "kid_subset": against.kid_subset,
        "checkpoint": checkpoints.digest(run.checkpoint),
        "dtype": run.dtype,
    }

    @functools.cache
    def training_images() -> dict[str, float] | None:
        """The metrics of as many training images, the mark to reach; None if they are the reference."""
        if against.split == "train":
            return None
        seen = dataset.to_uint8(dataset.scale(dataset.train[: against.num_samples]))
        return measure(extractor(seen), reference, metric, against.kid_subset)

    @functools.cache
    def exact(seed: int) -> Tensor:
        """The probability-flow solution from the noise of a seed, tightly solved."""
        solver = samplers.build("probability_flow", **EXACT)
        count = min(NUM_EXACT, against.num_samples)
        return draw(solver, in_float32, device, count, count, seed, quiet=True).x

    kept = max(NUM_EXACT, NUM_SHOWN)
    batches_each = -(-against.num_samples // against.batch_size)
    progress = tqdm(total=batches_each * len(plan), unit="batch", disable=quiet, desc="benchmark")
    in_float32 = replace(run, sampled=run.float32)
    strips = {setting.sampler: setting for setting in plan if setting.seed == plan[0].seed}  # the last: the longest

    def one(setting: Setting, stem: str) -> Row:
        sampler = sampler_of(setting)
        progress.set_postfix_str(f"{setting.sampler} {setting.option}={setting.value:g} seed {setting.seed}")

        def compute(first: int, last: int) -> Batch:
            count = last - first
            part = draw(sampler, run, device, count, count, setting.seed, quiet, first_index=first)
            start = time.perf_counter()
            features = extractor(pictures(dataset, part.x))  # all that is kept of most
            x = part.x if hook else part.x[: max(kept - first, 0)].clone()  # not a view, which would keep them all
            return Batch(features, x, part.nfe, part.seconds, time.perf_counter() - start)

        parts = []
        for part in batches(workdir / PICTURES / stem, against.num_samples, against.batch_size, compute):
            parts.append(part)
            progress.update()
        whole = join_batches(parts)
        start = time.perf_counter()
        found = measure(whole.features, reference, metric, against.kid_subset)
        metric_seconds = whole.metric_seconds + time.perf_counter() - start
        if hook is not None:
            found |= hook(setting, sampler, whole.x)
        error = None
        if not sampler.stochastic and not thresholding:  # a bounded flow has kinks: no solver is tight on it
            target = exact(setting.seed)
            error = float((whole.x[: len(target)] - target).square().mean())
        save_grid(workdir / PICTURES / f"{stem}.png", whole.x[:NUM_SHOWN], columns=NUM_SHOWN // 2)
        if setting == strips[setting.sampler]:  # drawn again and not along with the others, which are being timed
            few = draw(sampler, run, device, STRIP_ROWS, STRIP_ROWS, setting.seed, quiet=True, with_strip=True)
            times, states = zip(*few.strip, strict=True)
            save_strip(workdir / PICTURES / f"{stem}{TRAJECTORY}.png", states, times)
        return {
            "nfe": whole.nfe,
            "seconds": round(whole.seconds, 4),
            "images_per_second": against.num_samples / whole.seconds,
            "metric_seconds": round(metric_seconds, 4),
            "solver_error": error,
            "metrics": found,
            "training_images": training_images(),
            "picture": stem,
            "provenance": provenance(device, step=run.step, weights="ema"),
        }

    with progress:

        def show(row: Row, new: bool) -> None:
            shutil.rmtree(workdir / PICTURES / row["picture"], ignore_errors=True)  # its batches: the row has them now
            if not new:
                progress.update(batches_each)
            elif not quiet:
                progress.write(_line(row))

        rows = sweep(workdir / RECORD, recorded, plan, key, options_of, one, show)
    found = points(rows)
    write_atomically(workdir / "benchmark.csv", lambda p: p.write_text(as_csv(rows), encoding="utf-8"))
    seen = rows[0]["training_images"]
    save_sweep(workdir / "benchmark.png", found, metric, mark=seen and seen[metric])
    if seen is not None:
        say(f"\nas many training images against the {against.split} images: {metric} {seen[metric]:.4g}", quiet)
    for sentence in recommendation(found, metric):
        say(sentence, quiet)
    return rows


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Run the sweep that the flags describe, and recommend."""
    workdir, device = require_workdir(values), pick_device(values.device)
    steps, seeds = _numbers("steps", values.steps, int), _numbers("seeds", values.seeds, int)
    tolerances = _numbers("tolerances", values.tolerances, float)
    for name, numbers, low in (("steps", steps, 1), ("seeds", seeds, 0)):
        for number in numbers:
            require_int(name, number, low)
    plan = settings({name: list(samplers.config(name)) for name in values.samplers}, steps, tolerances, seeds)
    weights = Path(values.inception_weights) if values.inception_weights else None
    against = Against(values.num_samples, values.batch_size, values.split, values.extractor, weights, values.kid_subset)
    sweep_run(workdir, config, load_run(workdir, config, device), plan, against, device, values.quiet)
    look = f"sde-diffusion report --workdir={workdir}"
    say(f"wrote {RECORD}, benchmark.csv, benchmark.png in {workdir}; look: {look}", values.quiet)
