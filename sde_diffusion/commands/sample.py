"""``sde-diffusion sample``."""

from __future__ import annotations

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
from sde_diffusion.runs.sample import save_samples
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
    flags.DEFINE_boolean("trajectory", False, "Also write a strip of the reverse process.", flag_values=values)


def _conditions(path: str, num_samples: int) -> dict[str, Tensor]:
    """Read conditions by name, a row for each sample; none without a path."""
    found = read_conditions(path) if path else {}
    for name, values in found.items():
        expected, remedy = f"{num_samples}, one for each sample", f"give --num_samples={len(values)}"
        require(len(values) == num_samples, f"conditions={path!r}: rows of {name}", len(values), expected, remedy)
    return found


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Draw samples and write the grid, the arrays and, if asked for, the strip."""
    opened = open_configured(values, config)
    warn_of_prior(opened.denoiser.sde, torch.ones(1, *opened.shape))
    drawn = opened.sample(
        values.sampler,
        num_steps=values.steps,
        n=values.num_samples,
        batch_size=values.batch_size,
        noise=values.noise,
        trajectory=values.trajectory,
        quiet=values.quiet,
        classes=values.classes or None,
        conditions=_conditions(values.conditions, values.num_samples),
    )
    say(f"{len(drawn.x)} samples with {drawn.sampler}\nNFE {drawn.nfe:g}, {drawn.seconds:.1f} s", values.quiet)
    written = save_samples(opened, drawn, values.sampler or config.sampler.name)
    say(f"wrote {', '.join(path.name for path in written)} in {written[0].parent}", values.quiet)
