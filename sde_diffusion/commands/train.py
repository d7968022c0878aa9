"""``sde-diffusion train``."""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from sde_diffusion.commands import flags as shared
from sde_diffusion.commands.flags import define_run_flags, require_workdir
from sde_diffusion.errors import require
from sde_diffusion.pretrained import read_source
from sde_diffusion.runs.fitting import train_run
from sde_diffusion.runs.open import pick_device
from sde_diffusion.training.settings import is_run, read_settings


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values)
    flags.DEFINE_integer("batch_size", None, "Examples a step; by default training.batch_size.", flag_values=values)
    text = (
        "Go on with the run of the workdir though its steps are to be others: seed, rate, optimiser, batch size … Its "
        "model never changes; training.num_steps, device, precision and options of sampling need no leave."
    )
    flags.DEFINE_boolean("override", False, text, flag_values=values)
    text = (
        "Start from the weights of a run or a checkpoint, of whatever kind convert reads, and with its configuration."
    )
    flags.DEFINE_string("init", "", text, flag_values=values)


def base_config(values: flags.FlagValues) -> ConfigDict:
    """Return what flags change: with ``--init`` the configuration of the source, which takes the flag's place.

    Raises:
        InputError: if the source cannot be read, or the workdir was begun from another.
    """
    config, given = shared.training_config(values), values.init
    if not given:
        return config
    workdir = require_workdir(values)
    if is_run(workdir):
        begun = read_settings(workdir).get("provenance", {}).get("init", {}).get("given")
        same = begun is not None and os.path.realpath(begun) == os.path.realpath(given)
        expected = f"{begun!r}, from which {workdir} was begun" if begun else f"none, for {workdir} was begun without"
        require(same, "init", given, expected, "take a new --workdir")
        values.init = None
        return config
    source = read_source(Path(given), config, describes=bool(values.config))
    whole = source.pretrained.source["format"] == "sde-diffusion"
    expected = f"none beside --init={given}, a run whose configuration is taken"
    require(not (whole and values.config), "config", values.config, expected, "change it by --config.KEY=VALUE")
    values.init = source
    return source.config


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Train to ``training.num_steps``, from the newest checkpoint if there is one."""
    if values.batch_size is not None:
        config.training.batch_size = values.batch_size
    how = {"init": values.init or None, "override": values.override}
    train_run(require_workdir(values), config, pick_device(values.device), values.quiet, **how)
