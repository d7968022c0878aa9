"""``sde-diffusion benchmark``: which sampler to use at which cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from sde_diffusion.commands.flags import define_pretrained_flag, define_run_flags, open_configured
from sde_diffusion.errors import InputError, require, require_int
from sde_diffusion.evaluation.curves import points, recommendation
from sde_diffusion.evaluation.sweep import RECORD
from sde_diffusion.evaluation.uncertainty import plus_minus
from sde_diffusion.runs.run import STEPS, SWEPT, TOLERANCES
from sde_diffusion.runs.sweep import SweepOptions, comparable_rows
from sde_diffusion.terminal import say


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values)
    define_pretrained_flag(values)
    flags.DEFINE_list("samplers", ",".join(SWEPT), "Samplers.", flag_values=values)
    flags.DEFINE_list("steps", ",".join(map(str, STEPS)), "Numbers of steps.", flag_values=values)
    flags.DEFINE_list(
        "tolerances",
        ",".join(map(str, TOLERANCES)),
        "Tolerances of samplers that choose their own steps.",
        flag_values=values,
    )
    flags.DEFINE_list("seeds", "0", "Seeds; more than one give an error that includes them.", flag_values=values)
    flags.DEFINE_integer("num_samples", 1000, "Samples of each run.", flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "Samples at a time; does not change them.", flag_values=values)
    flags.DEFINE_enum("split", "test", ["test", "train"], "Split of the data to compare with.", flag_values=values)
    flags.DEFINE_string("extractor", "", "Feature network; by default that of the data set.", flag_values=values)
    flags.DEFINE_string("inception_weights", "", "File with torch-fidelity's Inception weights.", flag_values=values)
    text = "Of a run with classes, those of the samples: 'data' (the labels of the split), 'none', 'all', or 0,1,2."
    flags.DEFINE_string("classes", "data", text, flag_values=values)
    flags.DEFINE_integer("kid_subset", 0, "Images of each disjoint KID subset; 0: all at once.", flag_values=values)


def _numbers(name: str, texts: list[str], kind: type) -> list[Any]:
    try:
        found = [kind(text) for text in texts]
    except ValueError:
        raise InputError(f"{name}={','.join(texts)!r}: expected numbers separated by commas") from None
    require(len(found) > 0, name, texts, "at least one number")
    return found


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Run the sweep that the flags describe, and recommend."""
    steps, seeds = _numbers("steps", values.steps, int), _numbers("seeds", values.seeds, int)
    tolerances = _numbers("tolerances", values.tolerances, float)
    for name, numbers, low in (("steps", steps, 1), ("seeds", seeds, 0)):
        for number in numbers:
            require_int(name, number, low)
    weights = Path(values.inception_weights) if values.inception_weights else None
    options = SweepOptions(
        values.num_samples,
        values.batch_size,
        values.split,
        values.extractor,
        weights,
        values.kid_subset,
        values.classes,
    )
    opened = open_configured(values, config)
    rows = opened.benchmark(
        values.samplers, steps=steps, tolerances=tolerances, seeds=seeds, options=options, quiet=values.quiet
    )
    metric, seen, known = rows[0]["metric"], rows[0]["training_images"], comparable_rows(opened, rows)
    if seen is not None:
        noun = opened.dataset.noun
        found = plus_minus(seen[metric], seen[f"{metric} error"])
        say(f"\nas many training {noun} against the {values.split} {noun}: {metric} {found}")
    say("± is a 95 % interval; a number without one has none that covers")
    if len(known) > len(rows):
        say(f"of all {len(known)} rows that can be compared, {len(known) - len(rows)} of other sweeps among them:")
    for sentence in recommendation(points(known), metric):
        say(sentence)
    look = f"sde-diffusion report --workdir={opened.workdir}"
    written = [name for name in (RECORD, "benchmark.csv", "benchmark.png") if (opened.workdir / name).exists()]
    say(f"wrote {', '.join(written)} in {opened.workdir}; look: {look}")
