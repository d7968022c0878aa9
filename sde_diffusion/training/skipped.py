"""Steps that are skipped since loss or gradient is not finite: counted, and named with examples and noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.terminal import notice
from sde_diffusion.training.checkpoints import TrainingState, last_good

Losses = Callable[[int], tuple[Tensor, Tensor]]
"""``losses(step)`` returns the loss of each example of a step, and their numbers, (B,) each."""
NAMED = 3
"""How many examples a line names."""


def look(
    recent: list[Tensor], state: TrainingState, max_skipped: int, examine: Callable[[int], str], workdir: Path
) -> float | None:
    """Look at the losses of the latest steps, NaN where one was skipped, and say which were.

    Args:
        recent: up to that of step ``state.step``, at least one.
        examine: says of a step, counted from 0, which examples it is about.

    Returns:
        The mean of those that were not skipped; None if all were.

    Raises:
        InputError: if more than ``max_skipped`` in a row were.
    """
    values = torch.stack(recent).tolist()  # the one place where the host waits for the device
    bad = None
    for step, value in enumerate(values, start=state.step - len(values)):
        if math.isfinite(value):
            state.skipped_in_row = 0
            continue
        bad = step
        state.skipped += 1
        state.skipped_in_row += 1
        if state.skipped_in_row > max_skipped:
            raise InputError(
                f"loss or gradient is not finite at step {step + 1}, as of {state.skipped_in_row} in a row, and "
                f"training.max_skipped={max_skipped}: {examine(step)}; {last_good(workdir)}; check the data or lower "
                "training.learning_rate"
            )
    if bad is not None:
        notice(
            f"step {bad + 1} is skipped, for its loss or gradient is not finite: {examine(bad)}; skipped are "
            f"{state.skipped_in_row} in a row, {state.skipped} in all"
        )
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def examine(model: nn.Module, losses: Losses, step: int) -> str:
    """Compute the losses of a step anew, and name examples and noise levels where they are not finite, or largest.

    The weights may have moved since; examples, times and noise are those of the step.
    """
    levels: list[Any] = []
    hook = model.register_forward_pre_hook(lambda module, args: levels.extend(args[1:2]))
    try:
        found, indices = losses(step)
    finally:
        hook.remove()
    values = found.detach().double().cpu()
    order = values.nan_to_num(nan=math.inf).sort(descending=True, stable=True).indices[:NAMED].tolist()
    parts = [f"{int(indices[i])}{_level(levels, i, len(values))}, loss {float(values[i]):.4g}" for i in order]
    count = int((~values.isfinite()).sum())
    which = f"{count} of {len(values)} examples have no finite loss" if count else "the largest losses are"
    return f"{which}: example {'; example '.join(parts)}"


def _level(levels: list[Any], i: int, size: int) -> str:
    """Return the time and log SNR at which the model was first told an example, if it was told some."""
    level = levels[0] if levels else None
    numbers = {"t": level.t, "log SNR": level.log_snr} if isinstance(level, NoiseLevel) else {"t": level}
    texts = [
        f"{name} {float(value.reshape(-1)[i]):.4g}"
        for name, value in numbers.items()
        if isinstance(value, Tensor) and value.numel() == size
    ]
    return f" at {', '.join(texts)}" if texts else ""
