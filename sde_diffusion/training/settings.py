"""What a run is: its configuration and the shape of its data, in ``config.json`` and again in each checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sde_diffusion.errors import InputError, require
from sde_diffusion.records import read_record, write_record
from sde_diffusion.terminal import notice

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
GIVEN = "given"
"""Name of a network, SDE or data set that was handed over in Python, and cannot be built from a configuration."""
_SECTIONS = ("data", "sde", "network", "denoiser")


def existing(workdir: Path) -> list[Path]:
    """Return the checkpoint folders ``step_N`` of a workdir by their number; all else there is the person's own."""
    found = (workdir / CHECKPOINTS).iterdir() if (workdir / CHECKPOINTS).is_dir() else ()
    numbered = [path for path in found if re.fullmatch(r"step_[0-9]+", path.name) and path.is_dir()]
    return sorted(numbered, key=lambda path: (int(path.name.removeprefix("step_")), path.name))


def is_run(workdir: Path) -> bool:
    """Return whether a folder is that of a run."""
    return (workdir / CONFIG_FILE).exists() or bool(existing(workdir))


def write_settings(workdir: Path, settings: dict[str, Any]) -> None:
    """Write ``config.json``: "config", "data" (shape, grey levels, codec, conditions, names) and "provenance"."""
    write_record(workdir / CONFIG_FILE, settings)


def read_settings(workdir: Path) -> dict[str, Any]:
    """Read what a run is; where ``config.json`` is damaged or gone, the copy in its newest checkpoint that has one.

    Raises:
        InputError: if there is neither.
    """
    path = workdir / CONFIG_FILE
    try:
        return _checked(read_record(path), path)
    except InputError as error:
        for folder in reversed(existing(workdir)):
            try:
                content = _checked(read_record(folder / "state.json"), folder / "state.json")
            except InputError:
                continue
            notice(f"{error}; the copy in {folder.name} is used instead")
            return content
        if not path.exists() and existing(workdir):
            message = f"workdir={str(workdir)!r}: has checkpoints but no {CONFIG_FILE}; restore it from the training"
            raise InputError(message) from None
        raise


def _checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return settings if they have what a run needs."""
    ok = all(isinstance(content.get(key), dict) for key in ("config", "data"))
    ok = ok and all(isinstance(content["config"].get(section), dict) for section in _SECTIONS)
    require(ok, str(path), sorted(content), "the configuration of a run, with keys 'config' and 'data'")
    shape, levels = content["data"].get("shape"), content["data"].get("levels")
    ok = isinstance(shape, list) and len(shape) > 0 and all(type(n) is int and n > 0 for n in shape)
    require(ok, f"{path}: data.shape", shape, "the shape of one example")
    ok = levels is None or (type(levels) is int and levels > 1)
    require(ok, f"{path}: data.levels", levels, "the number of grey levels, or null")
    codec = content["data"].get("codec", {})
    require(isinstance(codec, dict), f"{path}: data.codec", codec, "the name of a codec and what it is made of")
    conditions = content["data"].get("conditions", {})
    ok = isinstance(conditions, dict) and all(isinstance(sizes, list) for sizes in conditions.values())
    require(ok, f"{path}: data.conditions", conditions, "the shape of one value of each condition, by name")
    for key in ("class_names", "columns"):
        names = content["data"].get(key, [])
        ok = isinstance(names, list) and all(isinstance(name, str) for name in names)
        require(ok, f"{path}: data.{key}", names, "a list of names")
    return content
