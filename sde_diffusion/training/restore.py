"""Weights and moments that were read, put back where they belong, if they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.terminal import notice
from sde_diffusion.training.checkpoints import STREAMS, Checkpoint, TrainingState, file_of

NETWORK = "the network of the config"


def require_like(tensors: dict[str, Tensor], own: dict[str, Tensor], where: str, whose: str) -> None:
    """Refuse tensors that were read unless they have the names, shapes and dtypes of ``own``.

    Raises:
        InputError: names the first that differ.
    """
    problems = [f"missing {k}" for k in own if k not in tensors] + [
        f"unexpected {k}" for k in sorted(tensors) if k not in own
    ]
    for key, value in own.items():
        if key in tensors and tensors[key].shape != value.shape:
            problems.append(f"{key} has shape {tuple(tensors[key].shape)}, not {tuple(value.shape)}")
        elif key in tensors and tensors[key].dtype != value.dtype:
            problems.append(f"{key} has dtype {tensors[key].dtype}, not {value.dtype}")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{where}: does not fit {whose}: {'; '.join(problems[:3])}{more}")


def fill(network: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Load weights that were read from ``where``.

    Raises:
        InputError: on missing or unexpected names and on other shapes or dtypes; names them.
    """
    require_like(tensors, network.state_dict(), str(where), NETWORK)
    network.load_state_dict(tensors)


def restore(found: Checkpoint, state: TrainingState, optimizer: str) -> None:
    """Fill ``state`` from a checkpoint of :func:`read_to_train`, bit for bit.

    Args:
        optimizer: name of that of ``state``; if the checkpoint is of another, its moments start anew.

    Raises:
        InputError: if it does not fit; ``state`` is then as it was.
    """
    parameters = dict(state.network.named_parameters())
    moments = found.tensors["optimizer"]
    idle = found.idle if found.idle is not None else () if moments else tuple(parameters)
    if found.optimizer != optimizer:
        notice(f"{found.folder}: was trained with {found.optimizer}; the moments of {optimizer} start anew")
        moments, idle = {}, tuple(parameters)
    expected = _moments(state.optimizer, parameters, idle)
    require_like(moments, expected, str(file_of(found.folder, "optimizer")), "the optimiser of the config")
    for name in ("ema", "network"):
        require_like(found.tensors[name], state.network.state_dict(), str(file_of(found.folder, name)), NETWORK)
    state.network.load_state_dict(found.tensors["network"])
    state.ema.network.load_state_dict(found.tensors["ema"])
    state.step, state.ema.updates = found.step, found.ema_updates
    state.skipped, state.skipped_in_row = found.skipped, found.skipped_in_row
    if found.streams != STREAMS:
        notice(
            f"{found.folder}: of a version with other random numbers; it is trained on, but not bit for bit as there"
        )
    slots: dict[int, dict[str, Tensor]] = {}
    indexed = list(parameters.values())
    for key, value in moments.items():
        index, _, name = key.partition(".")
        parameter = indexed[int(index)]
        if value.shape == parameter.shape:  # the memory layout of the parameter: fused optimisers go by memory
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        slots.setdefault(int(index), {})[name] = value
    template = state.optimizer.state_dict()
    state.optimizer.load_state_dict({"state": slots, "param_groups": template["param_groups"]})


def _moments(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], idle: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return tensors like those that an optimiser keeps, without numbers: what a step on the meta device leaves.

    Args:
        idle: names of parameters of which it keeps nothing.
    """
    twins = [nn.Parameter(torch.empty_like(p, device="meta")) for p in parameters.values()]
    kind: Any = type(optimizer)
    twin: torch.optim.Optimizer = kind(twins)
    twin.param_groups[0] |= {**optimizer.param_groups[0], "params": twins, "fused": False, "foreach": False}
    for name, parameter in zip(parameters, twins, strict=True):
        parameter.grad = None if name in idle else torch.empty_like(parameter)
    twin.step()
    return {f"{i}.{k}": torch.as_tensor(v) for i, own in twin.state_dict()["state"].items() for k, v in own.items()}
