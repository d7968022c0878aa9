"""Checkpoints: a folder of safetensors and one JSON each, written whole or not at all, and checked when read.

checkpoints/step_00001000/  network.safetensors  ema.safetensors  optimizer.safetensors  state.json

``state.json`` has the step, the SHA-256 of the other files, and the configuration and provenance of the run. A
checkpoint that is damaged is passed over, with a line that says so, for the one before it.
"""

from __future__ import annotations

import errno
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, require, require_int
from sde_diffusion.files import discard, new_folder, sha256, sweep_unfinished
from sde_diffusion.memory import require_memory
from sde_diffusion.reading import require_file
from sde_diffusion.records import read_record, write_record
from sde_diffusion.terminal import notice
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.settings import CHECKPOINTS
from sde_diffusion.training.settings import existing as existing

FORMAT = "sde-diffusion checkpoint 1"
STREAMS = 2
"""Version of the streams of random numbers; 1 is that of version 0.1.0."""
ATTEMPTS = 1000
"""How often a reader looks anew when the checkpoint that it reads is rotated away."""


@dataclass
class TrainingState:
    """Everything that training changes.

    Attributes:
        network: in training.
        ema: its averaged weights.
        optimizer: its optimiser.
        step: number of finished steps, the skipped ones with them.
        skipped: number of steps that were skipped, for their loss or gradient was not finite.
        skipped_in_row: of these, those at the end.
    """

    network: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """What was read of a checkpoint; whoever has it needs its files no more.

    Attributes:
        folder: where it lay.
        step: number of finished training steps.
        ema_updates: number of updates of the averaged weights.
        digest: SHA-256 of the averaged weights' file, which tells checkpoints apart wherever they lie.
        tensors: "ema", and where they were asked for and are there, "network" and "optimizer": tensors by name.
        idle: names of the parameters for which the optimiser had no state; None where that was not noted.
        streams: version of the streams of random numbers with which it was trained.
        optimizer: name of the optimiser that it was trained with.
        skipped, skipped_in_row: as of :class:`TrainingState`.
    """

    folder: Path
    step: int
    ema_updates: int
    digest: str
    tensors: dict[str, dict[str, Tensor]]
    idle: tuple[str, ...] | None
    streams: int
    optimizer: str
    skipped: int
    skipped_in_row: int


class Damaged(InputError):
    """A checkpoint that cannot be used, though an earlier one may be."""


def file_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def save(workdir: Path, state: TrainingState, keep: int, settings: dict[str, Any]) -> Path:
    """Write the checkpoint of ``state`` and delete all but the newest ``keep``.

    Args:
        settings: the configuration, data and provenance of the run, stored in ``state.json`` too.

    Raises:
        InputError: if a weight is not finite: nothing is written then, and no checkpoint deleted.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target = workdir / CHECKPOINTS / f"step_{state.step:08d}"
    slots = _by_parameter(state)
    parts = {
        "network": state.network.state_dict(),
        "ema": state.ema.network.state_dict(),
        "optimizer": {f"{i}.{slot}": value for i, own in enumerate(slots.values()) for slot, value in own.items()},
    }
    content = {
        "format": FORMAT,
        "step": state.step,
        "ema_updates": state.ema.updates,
        "skipped": state.skipped,
        "skipped_in_row": state.skipped_in_row,
        "streams": STREAMS,
        "idle": [name for name, own in slots.items() if not own],
        **settings,
    }
    _require_finite(workdir, state.step, parts)
    try:
        with new_folder(target) as part:
            ordinary = part.stat().st_mode & 0o666
            for name, tensors in parts.items():
                save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, file_of(part, name))
                file_of(part, name).chmod(ordinary)  # safetensors lets nobody else read its files
            content["files"] = {name: sha256(file_of(part, name)) for name in parts}
            write_record(part / "state.json", content)
            if target.is_dir():
                discard(target)
    except SafetensorError as error:  # says in words what the system said in a number
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(target)) from None
    for old in existing(workdir)[:-keep]:
        discard(old)
    return target


def _require_finite(workdir: Path, step: int, parts: dict[str, dict[str, Tensor]]) -> None:
    for name, tensors in parts.items():
        if bad := [key for key, value in tensors.items() if not value.isfinite().all()]:
            raise InputError(
                f"{name} is not finite at step {step}, in {', '.join(bad[:3])}, {len(bad)} in all: not saved; "
                f"{last_good(workdir)}; in a training, lower training.learning_rate"
            )


def last_good(workdir: Path) -> str:
    """Return what a line says of where a training that has to end could go on."""
    kept = existing(workdir)
    return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"


def _by_parameter(state: TrainingState) -> dict[str, dict[str, Tensor]]:
    """Return the optimiser's tensors of each parameter, in the order in which it counts them."""
    slots = state.optimizer.state_dict()["state"]
    names = [name for name, _ in state.network.named_parameters()]
    return {name: {k: torch.as_tensor(v) for k, v in slots.get(i, {}).items()} for i, name in enumerate(names)}


def newest(workdir: Path) -> Path:
    """Return the newest checkpoint folder, which may be damaged.

    Raises:
        InputError: if there is none.
    """
    found = existing(workdir)
    if not found:
        raise InputError(
            f"workdir={str(workdir)!r}: no checkpoint in {workdir / CHECKPOINTS}; train first: "
            f"sde-diffusion train --workdir={workdir}"
        )
    return found[-1]


def read(workdir: Path, *names: str) -> Checkpoint:
    """Read the newest checkpoint that is whole.

    Args:
        names: which tensors besides "ema" to read: "network", "optimizer".

    Raises:
        InputError: if there is none; says what is wrong with the newest.
    """
    for _ in range(ATTEMPTS):
        damaged: list[Damaged] = []
        for folder in reversed(existing(workdir)):
            try:
                found = _read_folder(folder, ("ema", *names))
            except Damaged as error:
                if not folder.exists():
                    break  # rotated away while it was read: there is a newer one
                damaged.append(error)
                continue
            for problem in damaged:
                notice(f"{problem}; {found.folder.name} is used instead")
            return found
        else:
            if damaged:
                raise InputError(f"{damaged[0]}; there is no checkpoint before it that could be used")
            newest(workdir)
    raise InputError(f"workdir={str(workdir)!r}: its checkpoints are replaced faster than they can be read")


def _read_folder(folder: Path, names: tuple[str, ...]) -> Checkpoint:
    try:
        content = read_record(folder / "state.json")
        expected = f"a checkpoint of this project with format {FORMAT!r}"
        require(content.get("format") == FORMAT, f"{folder / 'state.json'}: format", content.get("format"), expected)
        counts = {"skipped": 0, "skipped_in_row": 0, **content}  # which earlier versions do not have
        for key in ("step", "ema_updates", "skipped", "skipped_in_row"):
            require_int(f"{folder / 'state.json'}: {key}", counts.get(key), 0)
        hashes = content.get("files", {})
        require(isinstance(hashes, dict), f"{folder / 'state.json'}: files", hashes, "the SHA-256 of each file")
        idle = tuple(map(str, content["idle"])) if isinstance(content.get("idle"), list) else None
        tensors = {n: _read_tensors(file_of(folder, n), hashes) for n in names if _is_there(folder, n, hashes)}
        digest = hashes.get("ema") or sha256(file_of(folder, "ema"))
    except PermissionError:
        raise
    except (OSError, InputError) as error:
        raise Damaged(str(error)) from None
    if not hashes:
        notice(f"{folder}: has no SHA-256 of its files, being of an earlier version; it was used unchecked")
    streams = content["streams"] if isinstance(content.get("streams"), int) else 1
    skipped = counts["skipped"], counts["skipped_in_row"]
    return Checkpoint(
        folder, content["step"], content["ema_updates"], digest, tensors, idle, streams, _optimizer(content), *skipped
    )


def _optimizer(content: dict[str, Any]) -> str:
    """Return the name of the optimiser by the configuration in ``state.json``, "adamw" where that says nothing."""
    config = content.get("config")
    training = config.get("training") if isinstance(config, dict) else None
    name = training.get("optimizer") if isinstance(training, dict) else None
    return name if isinstance(name, str) else "adamw"


def _is_there(folder: Path, name: str, hashes: dict[str, str]) -> bool:
    """Return whether a checkpoint has a file; what must be there is, so that its absence is told when it is read."""
    return name == "ema" or name in hashes or file_of(folder, name).exists()


def _read_tensors(path: Path, hashes: dict[str, str]) -> dict[str, Tensor]:
    from safetensors.torch import load

    size = require_file("checkpoint", path).stat().st_size
    require_memory("checkpoint", str(path), 2 * size, "its bytes, and then its tensors")
    content = path.read_bytes()  # once: what is checked is what is used
    if hashes and hashlib.sha256(content).hexdigest() != hashes.get(path.stem):
        raise InputError(f"{path}: damaged, it is not as it was written by its SHA-256")
    try:
        return load(content)
    except Exception as error:  # a header that is none, a dtype that PyTorch has not: many kinds
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None


def read_to_train(workdir: Path) -> Checkpoint | None:
    """Read the newest whole checkpoint of a workdir with all that training needs; None if there is none yet.

    Raises:
        InputError: if there are only damaged ones, or it has averaged weights alone.
    """
    if not existing(workdir):
        return None
    found = read(workdir, "network", "optimizer")
    whole = {"network", "optimizer"} <= found.tensors.keys()
    require(whole, "workdir", str(found.folder), "a checkpoint to train on", "this one has averaged weights alone")
    return found


def set_aside(workdir: Path, step: int) -> None:
    """Give checkpoints after ``step``, which turned out to be damaged, names that are none of a checkpoint."""
    for folder in existing(workdir):
        if int(folder.name.removeprefix("step_")) > step:
            target = folder.with_name(f"damaged_{folder.name}")
            discard(target)
            folder.rename(target)


def sweep(workdir: Path) -> None:
    """Remove what killed trainings left of checkpoints that they were writing."""
    sweep_unfinished(workdir / CHECKPOINTS)
