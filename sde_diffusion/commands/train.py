"""``sde-diffusion train``."""

from __future__ import annotations

from absl import flags
from ml_collections import ConfigDict

from sde_diffusion.commands.flags import define_run_flags, require_workdir
from sde_diffusion.runs.fitting import train_run
from sde_diffusion.runs.open import pick_device


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values)
    flags.DEFINE_integer("batch_size", None, "Examples a step; by default training.batch_size.", flag_values=values)


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Train to ``training.num_steps``, from the newest checkpoint if there is one."""
    if values.batch_size is not None:
        config.training.batch_size = values.batch_size
    train_run(require_workdir(values), config, pick_device(values.device), values.quiet)
