"""Runs that come with the package: a configuration, averaged weights and what was measured of them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sde_diffusion.errors import require
from sde_diffusion.files import new_folder
from sde_diffusion.training import checkpoints

FOLDER = Path(__file__).parent / "runs"


def names() -> list[str]:
    """Return the names of the runs."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def folder(name: str) -> Path:
    """Return where a run lies, to be read only.

    Raises:
        InputError: on an unknown name.
    """
    require(name in names(), "pretrained", name, f"one of {', '.join(names())}")
    return FOLDER / name


def unpack(name: str, workdir: Path) -> None:
    """Make ``workdir`` a copy of a run, whole or not at all; leave it alone if it is one already.

    Raises:
        InputError: on an unknown name, or if ``workdir`` holds something else.
    """
    source = folder(name)
    workdir = Path(os.path.realpath(workdir))  # what a link points to, not the link, is what is made
    empty = workdir.is_dir() and next(workdir.iterdir(), None) is None
    if workdir.exists() and not empty:
        same = bool(checkpoints.existing(workdir))
        same = same and checkpoints.read(workdir).digest == checkpoints.read(source).digest
        require(same, "workdir", str(workdir), f"a new or empty folder, or one of {name!r}", "it holds something else")
        return
    with new_folder(workdir) as part:  # not the permissions of an installation
        for path in sorted(source.rglob("*")):  # not copytree, which hides what the system says of a full disk
            target = part / path.relative_to(source)
            target.mkdir() if path.is_dir() else shutil.copyfile(path, target)
