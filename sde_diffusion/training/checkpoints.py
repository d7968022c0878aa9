"""Checkpoints: a folder of safetensors and one JSON each, written whole or not at all.

checkpoints/step_00001000/  network.safetensors  ema.safetensors  optimizer.safetensors  state.json
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, require
from sde_diffusion.files import read_json, sha256, write_json
from sde_diffusion.training.ema import EMA

FORMAT = "sde-diffusion checkpoint 1"


@dataclass
class TrainingState:
    """Everything that training changes.

    Attributes:
        network: in training.
        ema: its averaged weights.
        optimizer: its optimiser.
        step: number of finished steps.
    """

    network: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    step: int = 0


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(value) for i, slots in state.items() for name, value in slots.items()}


def save(workdir: Path, state: TrainingState, keep: int, facts: dict[str, Any]) -> Path:
    """Write the checkpoint of ``state`` and delete all but the newest ``keep``.

    Args:
        facts: provenance, stored in ``state.json``.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder = workdir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{state.step:08d}"
    temporary = folder / f".{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        for name, tensors in (
            ("network", state.network.state_dict()),
            ("ema", state.ema.network.state_dict()),
            ("optimizer", _optimizer_tensors(state.optimizer)),
        ):
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / f"{name}.safetensors")
        content = {"format": FORMAT, "step": state.step, "ema_updates": state.ema.updates, "provenance": facts}
        write_json(temporary / "state.json", content)
        for file in temporary.iterdir():
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if target.exists():  # the same step again, after a resume
            shutil.rmtree(target)
        os.rename(temporary, target)
    except SafetensorError as error:  # says in words what the system said in a number
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(target)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in existing(workdir)[:-keep]:
        shutil.rmtree(old)
    return target


def existing(workdir: Path) -> list[Path]:
    """Return the checkpoint folders of a workdir, oldest first."""
    return sorted((workdir / "checkpoints").glob("step_*"))


def newest(workdir: Path) -> Path:
    """Return the newest checkpoint folder.

    Raises:
        InputError: if there is none.
    """
    found = existing(workdir)
    if not found:
        raise InputError(
            f"workdir={str(workdir)!r}: no checkpoint in {workdir / 'checkpoints'}; train first: "
            f"sde-diffusion train --workdir={workdir}"
        )
    return found[-1]


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: not a readable safetensors file ({error}); delete the folder {path.parent.name} to use the "
            "checkpoint before it"
        ) from None


def _state(folder: Path) -> dict[str, Any]:
    content = read_json(folder / "state.json")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{folder / 'state.json'}: expected a checkpoint of this project with format {FORMAT!r}")
    return content


def fill(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights that were read from ``path``.

    Raises:
        InputError: on missing or unexpected names and on other shapes; names them.
    """
    own = network.state_dict()
    problems = [f"missing {k}" for k in own if k not in tensors] + [f"unexpected {k}" for k in tensors if k not in own]
    problems += [
        f"{k} has shape {tuple(tensors[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{path}: does not fit the network of the config: {'; '.join(problems[:3])}{more}")
    network.load_state_dict(tensors)


def load_ema(folder: Path, network: nn.Module) -> int:
    """Fill ``network`` with the averaged weights of a checkpoint; returns its step.

    Raises:
        InputError: on a truncated or foreign checkpoint, or one that does not fit the network.
    """
    content = _state(folder)
    fill(network, _read(folder / "ema.safetensors"), folder / "ema.safetensors")
    return int(content["step"])


def weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Return the averaged weights of a checkpoint, those in training (the same where it has no others), and its step.

    Raises:
        InputError: on a truncated or foreign checkpoint.
    """
    content, averaged = _state(folder), _read(folder / "ema.safetensors")
    raw = folder / "network.safetensors"
    return averaged, _read(raw) if raw.exists() else averaged, int(content["step"])


def digest(folder: Path) -> str:
    """Return the SHA-256 of a checkpoint's averaged weights, which tells checkpoints apart wherever they lie."""
    return sha256(folder / "ema.safetensors")


def restore(folder: Path, state: TrainingState) -> None:
    """Fill ``state`` from a checkpoint, bit for bit.

    Raises:
        InputError: as for :func:`load_ema`; nothing has been changed on disk.
    """
    content = _state(folder)
    whole = (folder / "network.safetensors").exists()
    require(whole, "workdir", str(folder), "a checkpoint to train on", "this one has averaged weights alone")
    fill(state.network, _read(folder / "network.safetensors"), folder / "network.safetensors")
    state.step, state.ema.updates = load_ema(folder, state.ema.network), int(content["ema_updates"])
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in _read(folder / "optimizer.safetensors").items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:  # the memory layout of the parameter: fused optimisers go by memory
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        slots.setdefault(int(index), {})[name] = value
    template = state.optimizer.state_dict()
    state.optimizer.load_state_dict({"state": slots, "param_groups": template["param_groups"]})
