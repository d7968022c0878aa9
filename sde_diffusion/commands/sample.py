"""``sde-diffusion sample``."""

from __future__ import annotations

from absl import flags
from ml_collections import ConfigDict

from sde_diffusion.commands.flags import (
    define_pretrained_flag,
    define_run_flags,
    define_sampling_flags,
    open_configured,
)
from sde_diffusion.runs.sample import save_samples
from sde_diffusion.terminal import say


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values)
    define_pretrained_flag(values)
    define_sampling_flags(values)
    flags.DEFINE_boolean("trajectory", False, "Also write a strip of the reverse process.", flag_values=values)


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Draw samples and write the grid, the arrays and, if asked for, the strip."""
    opened = open_configured(values, config)
    drawn = opened.sample(
        values.sampler,
        num_steps=values.steps,
        n=values.num_samples,
        batch_size=values.batch_size,
        trajectory=values.trajectory,
        quiet=values.quiet,
    )
    say(f"{len(drawn.x)} samples with {drawn.sampler}\nNFE {drawn.nfe:g}, {drawn.seconds:.1f} s", values.quiet)
    written = save_samples(opened, drawn, values.sampler or config.sampler.name)
    say(f"wrote {', '.join(path.name for path in written)} in {written[0].parent}", values.quiet)
