"""``sde-diffusion benchmark``: which sampler to use at which cost."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from torch import Tensor

import samplers
from samplers import Sampler
from sde_diffusion import config as configuration
from sde_diffusion.commands.flags import define_run_flags, pick_device, require_workdir, say
from sde_diffusion.commands.sample import draw, load_run
from sde_diffusion.data import Dataset
from sde_diffusion.errors import InputError, require, require_int
from sde_diffusion.evaluation.metrics import Extractor, content_hash, measure, reference_features
from sde_diffusion.evaluation.pictures import save_sweep
from sde_diffusion.evaluation.sweep import Row, Setting, as_csv, points, read_rows, recommendation, settings, sweep
from sde_diffusion.files import provenance, write_atomically
from sde_diffusion.training import checkpoints

EXTRACTOR_OF = {"digits": "digits", "fashion_mnist": "fashion"}
"""Built-in extractors by data set; all others take torch-fidelity's Inception."""
EXACT = {"rtol": 1e-5, "atol": 1e-5}
"""Of the probability-flow solution that deterministic samplers are held against."""
NUM_EXACT = 64


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values)
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
    flags.DEFINE_integer("kid_subset", 0, "Images of a KID subset; 0: 1,000 or all there are.", flag_values=values)


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


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Run the sweep, write the record's table and figure, recommend."""
    from tqdm import tqdm

    workdir, device, quiet = require_workdir(values), pick_device(values.device), values.quiet
    steps, seeds = _numbers("steps", values.steps, int), _numbers("seeds", values.seeds, int)
    tolerances = _numbers("tolerances", values.tolerances, float)
    for name, numbers, low in (("steps", steps, 1), ("seeds", seeds, 0)):
        for number in numbers:
            require_int(name, number, low)
    for name in values.samplers:  # refuse what cannot be built before anything is computed
        for option, numbers in (("num_steps", steps), ("rtol", tolerances)):
            if option in samplers.config(name):
                for number in numbers:
                    samplers.build(name, **{option: number})
    loaded, dataset = load_run(workdir, config, device), configuration.build_dataset(config)
    require(dataset.levels is not None, "workdir", str(workdir), "a run on pictures", "vectors have no feature network")
    extractor_name = values.extractor or EXTRACTOR_OF.get(config.data.name, "inception-v3-compat")
    weights = Path(values.inception_weights) if values.inception_weights else None
    extractor = Extractor(extractor_name, device, weights)
    k = getattr(dataset, values.split)
    real = dataset.to_uint8(dataset.scale(k))
    reference = reference_features(extractor, real)

    key: Row = {
        "metric": extractor.metric,
        "extractor": extractor.digest,
        "reference": f"{dataset.name} {values.split} {content_hash(real)}",
        "num_samples": values.num_samples,
        "kid_subset": values.kid_subset,
        "checkpoint": checkpoints.digest(loaded.checkpoint),
        "dtype": "float32",
    }
    options: dict[str, Sequence[str]] = {name: list(samplers.config(name)) for name in values.samplers}
    plan = settings(options, steps, tolerances, seeds)

    @functools.cache
    def exact(seed: int) -> Tensor:
        """The probability-flow solution from the noise of a seed, tightly solved."""
        solver = samplers.build("probability_flow", **EXACT)
        count = min(NUM_EXACT, values.num_samples)
        return draw(solver, loaded, device, count, count, seed, quiet=True).x

    def sampler_of(setting: Setting) -> Sampler:
        chosen: dict[str, Any] = {"num_steps": int(setting.value)}
        if setting.option == "tolerance":
            chosen = {"rtol": setting.value, "atol": setting.value}
        return configuration.build_sampler(config, setting.sampler, **chosen)

    def one(setting: Setting) -> Row:
        sampler = sampler_of(setting)
        drawn = draw(sampler, loaded, device, values.num_samples, values.batch_size, setting.seed, quiet=True)
        found = measure(extractor(pictures(dataset, drawn.x)), reference, extractor.metric, values.kid_subset)
        error = None
        if not sampler.stochastic:
            target = exact(setting.seed)
            error = float((drawn.x[: len(target)] - target).square().mean())
        return {
            "nfe": drawn.nfe,
            "seconds": round(drawn.seconds, 4),
            "images_per_second": values.num_samples / drawn.seconds,
            "solver_error": error,
            "metrics": found,
            "provenance": provenance(device, step=loaded.step, weights="ema"),
        }

    recorded = read_rows(workdir / "benchmark.jsonl")
    with tqdm(total=len(plan), unit="run", disable=quiet, desc="benchmark") as progress:

        def show(row: Row, new: bool) -> None:
            progress.update()
            if new and not quiet:
                progress.write(_line(row))

        rows = sweep(workdir / "benchmark.jsonl", recorded, plan, key, lambda s: repr(sampler_of(s)), one, show)
    found = points(rows)
    write_atomically(workdir / "benchmark.csv", lambda p: p.write_text(as_csv(rows), encoding="utf-8"))
    save_sweep(workdir / "benchmark.png", found, extractor.metric)
    if values.split == "test":
        seen = dataset.to_uint8(dataset.scale(dataset.train[: len(k)]))
        floor = measure(extractor(seen), reference, extractor.metric)[extractor.metric]
        say(f"\ntraining against test images, {len(seen)}: {extractor.metric} {floor:.4g}", quiet)
    for sentence in recommendation(found, extractor.metric):
        say(sentence, quiet)
    say(f"wrote benchmark.jsonl, benchmark.csv, benchmark.png in {workdir}", quiet)
