"""The training loop: a pure function of (config, seed, step), so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.data import Examples
from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.files import write_atomically
from sde_diffusion.noise import NoiseStream, stream
from sde_diffusion.objectives import Objective
from sde_diffusion.records import as_line, read_lines
from sde_diffusion.terminal import progress
from sde_diffusion.training import checkpoints
from sde_diffusion.training.checkpoints import TrainingState
from sde_diffusion.training.interrupts import Interrupts, Stopped
from sde_diffusion.training.muon import Muon

BatchFn = Callable[[int, NoiseStream], Examples]
"""``batch(step, noise)`` returns the examples of a step in model space, and what they are conditioned on."""

LOG = "train.jsonl"
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

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "log_every", "checkpoint_every", "keep"):
            require_int(name, getattr(self, name), 1)
        require_int("warmup_steps", self.warmup_steps, 0)
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


def read_log(workdir: Path) -> list[dict[str, float]]:
    """Return what was logged of a training, a dictionary with "step", "loss" and "learning_rate" a line.

    Raises:
        InputError: if a line is damaged; names it.
    """

    def check(line: dict[str, Any]) -> None:
        for key in ("step", "loss", "learning_rate"):
            require(isinstance(line.get(key), (int, float)), key, line.get(key), "a number")

    return read_lines(workdir / LOG, "one of a training", check)


class TrainingLog:
    """Loss and learning rate in ``train.jsonl`` and in TensorBoard's files; lines past ``step`` are dropped."""

    def __init__(self, workdir: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = workdir / LOG
        if self._path.exists():
            kept = "".join(as_line(line) for line in read_log(workdir) if line["step"] <= step)
            write_atomically(self._path, lambda p: p.write_text(kept, encoding="utf-8"))
        self._writer = SummaryWriter(workdir / "tensorboard", purge_step=step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(as_line({"step": step, **values}))
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        self._writer.close()


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

    Args:
        workdir: receives ``train.jsonl``, TensorBoard's files and the checkpoints.
        model: what the objective is given, around ``state.network``.
        objective: what is made small.
        seed: of data order, times, noise and dropout.
        settings: what the run is (:mod:`sde_diffusion.training.settings`), stored with every checkpoint.
        quiet: no progress bar.

    Raises:
        InputError: if the loss is not finite: names the step; the last checkpoint is kept.
        Stopped: on Ctrl-C or SIGTERM, at the end of a step, which is saved.
    """
    log = TrainingLog(workdir, state.step)
    recent: list[Tensor] = []
    bar = progress(options.num_steps, "step", "train", quiet, done=state.step, leave=True)
    state.network.train()
    try:
        with Interrupts() as interrupts:
            while state.step < options.num_steps:
                recent.append(_step(model, state, objective, batch, options, seed))
                stopped = interrupts.number  # looked at once: what comes after this step waits for the next
                due = state.step == options.num_steps or state.step % options.checkpoint_every == 0
                save = due or stopped is not None
                if save or state.step % options.log_every == 0:
                    mean = _mean_loss(recent, state.step, workdir)
                    log.write(state.step, {"loss": mean, "learning_rate": options.rate(state.step - 1)})
                    bar.update(len(recent))
                    bar.set_postfix(loss=f"{mean:.4f}")
                    recent.clear()
                if save:
                    kept = checkpoints.save(workdir, state, options.keep, settings)
                if stopped is not None:
                    text = f"stopped at step {state.step}, saved in {kept}; the same command goes on from there"
                    raise Stopped(text, stopped)
    finally:
        bar.close()
        log.close()


def _step(
    model: nn.Module,
    state: TrainingState,
    objective: Objective,
    batch: BatchFn,
    options: TrainingOptions,
    seed: int,
) -> Tensor:
    """Take one step; returns its loss, which is not looked at here, so that the host does not wait for it."""
    step, device = state.step, next(state.network.parameters()).device
    torch.manual_seed(stream(seed, f"dropout of step {step}"))
    first = step * options.batch_size
    noise = NoiseStream(stream(seed, "training"), range(first, first + options.batch_size))
    examples = batch(step, noise)
    x = _to(device, examples.x)
    given = {name: _to(device, values) for name, values in examples.conditions.items()}
    value = objective(model, x, noise, **given).mean()
    state.optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    if options.grad_clip:
        nn.utils.clip_grad_norm_(state.network.parameters(), options.grad_clip)
    for group in state.optimizer.param_groups:
        group["lr"] = options.rate(step)
    state.optimizer.step()
    state.ema.update(state.network)
    state.step = step + 1
    return value.detach()


def _to(device: torch.device, x: Tensor) -> Tensor:
    """Bring a batch to the device, without waiting for it."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


def _mean_loss(recent: list[Tensor], step: int, workdir: Path) -> float:
    """Return the mean of the latest losses, or stop and name the first step whose loss is not finite."""
    values = torch.stack(recent)
    if not torch.isfinite(values).all():
        bad = step - len(recent) + 1 + int((~torch.isfinite(values)).int().argmax())
        kept = checkpoints.existing(workdir)
        where = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise InputError(f"loss is not finite at step {bad}; {where}; check the data or lower training.learning_rate")
    return float(values.mean())
