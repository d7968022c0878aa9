"""``sde-diffusion convert``."""

from __future__ import annotations

from pathlib import Path

import torch
from absl import flags
from ml_collections import ConfigDict

from sde_diffusion import config as configuration
from sde_diffusion.commands.flags import require_workdir
from sde_diffusion.errors import require
from sde_diffusion.files import new_folder, provenance
from sde_diffusion.pretrained import read_source
from sde_diffusion.runs.prior import warn_of_prior
from sde_diffusion.stored_config import chosen
from sde_diffusion.terminal import say
from sde_diffusion.training import checkpoints
from sde_diffusion.training.checkpoints import TrainingState
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.loop import make_optimizer
from sde_diffusion.training.settings import is_run, write_settings


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("source", "", "The checkpoint: a file or a folder.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder to make of it.", flag_values=values)
    flags.DEFINE_boolean("quiet", False, "Print nothing.", flag_values=values)


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Make a workdir with the configuration and the weights of a checkpoint."""
    workdir = require_workdir(values)
    require(bool(values.source), "source", values.source, "a checkpoint", "give --source=FILE or --source=FOLDER")
    held = "it holds a run already" if is_run(workdir) else "it holds something already"
    free = not workdir.exists() or (workdir.is_dir() and not any(workdir.iterdir()))
    require(free, "workdir", str(workdir), "a new folder", held)
    source = read_source(Path(values.source), config, describes=bool(values.config))
    network, options = source.network(averaged=False), configuration.build_training(source.config)
    ema, step = EMA(source.network(), options.ema_decay), source.pretrained.step
    ema.updates = step
    facts = provenance(seed=source.config.seed, source=source.pretrained.source)
    settings = {"config": chosen(source.config), "data": source.about, "provenance": facts}
    state = TrainingState(network, ema, make_optimizer(network, options), step)
    with new_folder(workdir) as part:
        checkpoints.save(part, state, keep=1, settings=settings)
        write_settings(part, settings)
    warn_of_prior(configuration.build_sde(source.config), torch.ones(1, *source.shape))
    size = sum(p.numel() for p in network.parameters())
    told = bool(getattr(network, "num_classes", 0)) and not getattr(network, "null_class", False)
    others = any(name != "classes" for name in getattr(network, "conditions", ()))
    given = " --classes=0" if told else " --conditions=FILE.npz" if others else ""
    say(
        f"{source.config.network.name}: {size:,} parameters, data {'×'.join(map(str, source.shape))}, step {step}\n"
        f"wrote {workdir}; next: sde-diffusion sample --workdir={workdir}{given}",
        values.quiet,
    )
