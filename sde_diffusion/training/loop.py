"""The training loop: a pure function of (config, seed, step), so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.data import Examples
from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.noise import NoiseStream, stream
from sde_diffusion.objectives import Objective
from sde_diffusion.terminal import progress
from sde_diffusion.training import checkpoints
from sde_diffusion.training.checkpoints import TrainingState
from sde_diffusion.training.interrupts import Interrupts, Stopped
from sde_diffusion.training.log import TrainingLog
from sde_diffusion.training.muon import Muon
from sde_diffusion.training.settings import write_settings
from sde_diffusion.training.skipped import Losses, examine, look

BatchFn = Callable[[int, NoiseStream], tuple[Examples, Tensor]]
"""``batch(step, noise)`` returns the examples of a step in model space, with what they are conditioned on, and their
numbers among those of the training split, (B,)."""

OPTIMIZERS = {"adamw": torch.optim.AdamW, "muon": Muon}


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the loop.

    Args:
        num_steps: optimiser steps in all.
        batch_size: examples a step.
        optimizer: "adamw", or "muon": AdamW whose steps of matrices are made orthogonal.
        learning_rate: peak of its rate.
        warmup_steps: steps of linear warm-up.
        schedule: "constant" after the warm-up, or "cosine" down to 0 at ``num_steps``.
        beta2: Adam's second decay.
        weight_decay: decoupled weight decay (AdamW).
        grad_clip: largest norm of the gradient; 0 leaves it.
        ema_decay: decay of the averaged weights.
        flip: mirror half of the pictures.
        label_dropout: share of the classes that a network with classes is not told, so that it also learns what there
            is without; what guidance needs.
        log_every: steps between log lines; the loss is looked at then.
        checkpoint_every: steps between checkpoints.
        keep: number of checkpoints kept.
        max_skipped: steps in a row that may be skipped since their loss or gradient is not finite.
    """

    num_steps: int = 2000
    batch_size: int = 128
    optimizer: str = "adamw"
    learning_rate: float = 2e-4
    warmup_steps: int = 100
    schedule: str = "cosine"
    beta2: float = 0.999
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ema_decay: float = 0.9999
    flip: bool = False
    label_dropout: float = 0.1
    log_every: int = 20
    checkpoint_every: int = 500
    keep: int = 2
    max_skipped: int = 10

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "log_every", "checkpoint_every", "keep"):
            require_int(name, getattr(self, name), 1)
        for name in ("warmup_steps", "max_skipped"):
            require_int(name, getattr(self, name), 0)
        require_float("learning_rate", self.learning_rate, 0.0, open_low=True)
        require_float("beta2", self.beta2, 0.0, 1.0)
        require_float("weight_decay", self.weight_decay, 0.0)
        require_float("grad_clip", self.grad_clip, 0.0)
        require_float("label_dropout", self.label_dropout, 0.0, 1.0)
        no_class = "a network that is never told a class learns nothing of classes"
        require(self.label_dropout < 1.0, "label_dropout", self.label_dropout, "less than 1", no_class)
        require_float("ema_decay", self.ema_decay, 0.0, 1.0)
        require(self.optimizer in OPTIMIZERS, "optimizer", self.optimizer, "'adamw' or 'muon'")
        require(self.schedule in ("constant", "cosine"), "schedule", self.schedule, "'constant' or 'cosine'")

    def rate(self, step: int) -> float:
        """Return the learning rate of step ``step``, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "constant":
            return self.learning_rate * warm
        return self.learning_rate * warm * 0.5 * (1.0 + math.cos(math.pi * step / self.num_steps))


def make_optimizer(network: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """Return ``options.optimizer`` over the network's parameters."""
    return OPTIMIZERS[options.optimizer](
        network.parameters(),
        lr=options.learning_rate,
        betas=(0.9, options.beta2),
        weight_decay=options.weight_decay,
        fused=True,
    )


def train(
    workdir: Path,
    model: nn.Module,
    state: TrainingState,
    objective: Objective,
    batch: BatchFn,
    options: TrainingOptions,
    seed: int,
    settings: dict[str, Any],
    quiet: bool = False,
) -> None:
    """Train from ``state.step`` to ``options.num_steps``.

    A step whose loss or gradient is not finite changes nothing but its number: it is skipped on the device, and said
    when the loss is looked at next.

    Args:
        workdir: receives checkpoints, logs, and ``config.json``: after the first step, then with a checkpoint.
        model: what the objective is given, around ``state.network``.
        objective: what is made small.
        seed: of data order, times, noise and dropout.
        settings: what the run is (:mod:`sde_diffusion.training.settings`), stored with every checkpoint.
        quiet: no progress bar.

    Raises:
        InputError: if more than ``options.max_skipped`` steps in a row are skipped, or the weights are not finite when
            they are to be saved; names step, examples and noise levels. The last checkpoint is kept.
        Stopped: on Ctrl-C or SIGTERM, at the end of a step, which is saved.
    """
    log = TrainingLog(workdir, state.step)
    recent: list[Tensor] = []
    bar = progress(options.num_steps, "step", "train", quiet, done=state.step, leave=True)
    losses = partial(losses_of_step, model, objective, batch, options.batch_size, seed)
    state.network.train()
    try:
        with Interrupts() as interrupts:
            while state.step < options.num_steps:
                recent.append(_step(losses, state, options))
                if state.step == 1:
                    write_settings(workdir, settings)
                stopped = interrupts.number  # looked at once: what comes after this step waits for the next
                due = state.step == options.num_steps or state.step % options.checkpoint_every == 0
                save = due or stopped is not None
                if save or state.step % options.log_every == 0:
                    bar.update(len(recent))
                    mean = look(recent, state, options.max_skipped, partial(examine, model, losses), workdir)
                    if mean is not None:
                        log.write(state.step, {"loss": mean, "learning_rate": options.rate(state.step - 1)})
                        bar.set_postfix(loss=f"{mean:.4f}")
                    recent.clear()
                if save:
                    kept = checkpoints.save(workdir, state, options.keep, settings)
                    write_settings(workdir, settings)  # not before: what fails to train changes no run
                if stopped is not None:
                    text = f"stopped at step {state.step}, saved in {kept}; the same command goes on from there"
                    raise Stopped(text, stopped)
    finally:
        bar.close()
        log.close()


def losses_of_step(
    model: nn.Module, objective: Objective, batch: BatchFn, batch_size: int, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Return the loss of each example of a step, and their numbers, a pure function of the weights, seed and step."""
    device = next(model.parameters()).device
    torch.manual_seed(stream(seed, f"dropout of step {step}"))
    first = step * batch_size
    noise = NoiseStream(stream(seed, "training"), range(first, first + batch_size))
    examples, indices = batch(step, noise)
    x = _to(device, examples.x)
    given = {name: _to(device, values) for name, values in examples.conditions.items()}
    return objective(model, x, noise, **given), indices


def _step(losses: Losses, state: TrainingState, options: TrainingOptions) -> Tensor:
    """Take one step; returns its loss, NaN if it is skipped. Neither is looked at, so that the host does not wait."""
    value = losses(state.step)[0].mean()
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), options.grad_clip or math.inf)
    skip = ~(value.detach().isfinite() & norm.isfinite())
    for group in state.optimizer.param_groups:
        group["lr"] = options.rate(state.step)
    optimizer: Any = state.optimizer
    optimizer.found_inf = skip.float()  # as of torch.amp.GradScaler: 1 has a fused optimiser's step change nothing
    optimizer.step()
    state.ema.update(state.network, skip)
    state.step += 1
    return value.detach().masked_fill(skip, math.nan)


def _to(device: torch.device, x: Tensor) -> Tensor:
    """Bring a batch to the device, without waiting for it."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)
