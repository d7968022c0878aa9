"""``sde-diffusion sample``."""

from __future__ import annotations

from pathlib import Path

import torch
from absl import flags
from ml_collections import ConfigDict
from torch import Tensor

from samplers import NOISES
from sde_diffusion.commands.flags import (
    define_pretrained_flag,
    define_run_flags,
    define_sampling_flags,
    open_configured,
)
from sde_diffusion.data.npz import read_conditions
from sde_diffusion.errors import require
from sde_diffusion.runs.prior import warn_of_prior
from sde_diffusion.runs.save import FORMATS, Saved, SavingOptions
from sde_diffusion.terminal import say


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values)
    define_pretrained_flag(values)
    define_sampling_flags(values)
    text = "Classes of the samples, by number or name, which take turns: 7, or 0,1,2, or 'all'; by default none."
    flags.DEFINE_string("classes", "", text, flag_values=values)
    text = "An .npz file with other conditions of the network by name, a row a sample."
    flags.DEFINE_string("conditions", "", text, flag_values=values)
    text = "Noise of the steps: independent, or the increments of one Brownian path a sample for any number of steps."
    flags.DEFINE_enum("noise", "independent", list(NOISES), text, flag_values=values)
    text = "Also write a few samples of the first batch on their way: a picture, and their states and times as .npz."
    flags.DEFINE_boolean("trajectory", False, text, flag_values=values)
    d = SavingOptions()
    text = "Folder for the samples, as samples.*; by default samples/ of the run, with a name for every draw."
    flags.DEFINE_string("out", "", text, flag_values=values)
    text = "Arrays of samples in their own units and in model space, or 8-bit pictures for evaluators elsewhere."
    flags.DEFINE_enum("format", d.format, list(FORMATS), text, flag_values=values)
    text = "Samples that are held in memory, and written, at a time; more than one shard is a folder of them."
    flags.DEFINE_integer("shard_size", d.shard_size, text, flag_values=values)
    text = "Draw again what is there already, and replace another draw in --out; else they are kept."
    flags.DEFINE_boolean("overwrite", False, text, flag_values=values)


def _conditions(path: str, num_samples: int) -> dict[str, Tensor]:
    """Read conditions by name, a row for each sample; none without a path."""
    found = read_conditions(path) if path else {}
    for name, values in found.items():
        expected, remedy = f"{num_samples}, one for each sample", f"give --num_samples={len(values)}"
        require(len(values) == num_samples, f"conditions={path!r}: rows of {name}", len(values), expected, remedy)
    return found


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Draw what is not there yet; write arrays or pictures, the record, the grid and, if asked for, the strip."""
    out = Path(values.out) if values.out else None
    saving = SavingOptions(out, values.format, values.shard_size, values.trajectory, values.overwrite)
    opened = open_configured(values, config)
    warn_of_prior(opened.denoiser.sde, torch.ones(1, *opened.shape))
    saved = opened.save_samples(
        values.sampler,
        num_steps=values.steps,
        n=values.num_samples,
        batch_size=values.batch_size,
        saving=saving,
        noise=values.noise,
        quiet=values.quiet,
        classes=values.classes or None,
        conditions=_conditions(values.conditions, values.num_samples),
    )
    say(_told(saved))


def _told(saved: Saved) -> str:
    """Return what the person at the terminal is told of samples."""
    lines = [f"{saved.count} samples with {saved.sampler}", f"NFE {saved.nfe:g}, {saved.seconds:.1f} s"]
    if not saved.changed:
        lines.append("all of them were there already; --overwrite draws them again")
    elif saved.before:
        lines.append(f"{saved.before} of them were there already")
    samples, *beside = saved.files
    stem = beside[0].name.removesuffix(".json")
    there = [path.name.removeprefix(stem) for path in beside if path.exists()]
    names = [f"{stem}/" if samples.is_dir() else samples.name, *there]
    if saved.shown < saved.count:
        names = [f"{name} (the first {saved.shown})" if name == ".png" else name for name in names]
    lines.append(f"{'wrote' if saved.changed else 'kept'} {', '.join(names)} in {samples.parent}")
    return "\n".join(lines)
