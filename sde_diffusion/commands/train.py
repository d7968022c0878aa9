"""``sde-diffusion train``."""

from __future__ import annotations

from pathlib import Path

import torch
from absl import flags
from ml_collections import ConfigDict

from sde_diffusion import config as configuration
from sde_diffusion.commands.flags import define_run_flags, pick_device, require_workdir, say
from sde_diffusion.files import provenance
from sde_diffusion.stored_config import chosen
from sde_diffusion.training import checkpoints
from sde_diffusion.training.checkpoints import TrainingState
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.loop import make_optimizer, train
from sde_diffusion.training.settings import write_settings


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values)
    flags.DEFINE_integer("batch_size", None, "Examples a step; by default training.batch_size.", flag_values=values)


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Train to ``training.num_steps``, from the newest checkpoint if there is one."""
    if values.batch_size is not None:
        config.training.batch_size = values.batch_size
    train_run(require_workdir(values), config, pick_device(values.device), values.quiet)


def train_run(workdir: Path, config: ConfigDict, device: torch.device, quiet: bool) -> None:
    """Train one run in ``workdir``."""
    options = configuration.build_training(config)
    checkpoints.sweep(workdir)
    found = checkpoints.read_to_train(workdir)
    dataset = configuration.build_dataset(config)
    torch.manual_seed(config.seed)
    network = configuration.build_network(config, dataset.shape).to(device)
    denoiser = configuration.build_denoiser(config, configuration.execute_network(config, network, training=True))
    loss = configuration.build_loss(config)
    configuration.build_sampler(config)  # refuse its options now, not after the training
    size = sum(p.numel() for p in network.parameters())
    say(f"{dataset.describe()}\n{config.network.name}: {size:,} parameters on {device}", quiet)

    state = TrainingState(network, EMA(network, options.ema_decay), make_optimizer(network, options))
    if found is not None:
        checkpoints.restore(found, state)
        checkpoints.set_aside(workdir, found.step)
        say(f"resuming from {found.folder}", quiet)
    data = {"shape": list(dataset.shape), "levels": dataset.levels}
    settings = {"config": chosen(config), "data": data, "provenance": provenance(device, seed=config.seed)}
    write_settings(workdir, settings)
    if state.step >= options.num_steps:
        say(f"{workdir} is trained to step {state.step} already; raise --config.training.num_steps to go on", quiet)
        return
    batch = configuration.training_batch(dataset, options, config.seed)
    train(workdir, denoiser, state, loss, batch, options, config.seed, settings, quiet)
    say(f"trained to step {state.step}; checkpoint {checkpoints.newest(workdir)}", quiet)
