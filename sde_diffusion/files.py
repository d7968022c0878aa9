"""Files that are whole or absent, and the provenance that each of them carries."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

import sde_diffusion
from sde_diffusion.commit import commit
from sde_diffusion.errors import InputError
from sde_diffusion.locks import is_at, try_lock
from sde_diffusion.terminal import left_out

UNFINISHED = ".unfinished-"
"""What the names of files and folders begin with that are being written."""


def _open(path: Path) -> int | None:
    """Open a file or folder to be locked; None where the system cannot."""
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return None


def sweep_unfinished(folder: Path) -> None:
    """Remove what killed processes were writing in ``folder``; what a living one is writing is locked, and stays."""
    for path in folder.glob(f"{UNFINISHED}*"):
        descriptor = _open(path)
        if descriptor is None:
            continue
        try:
            if try_lock(descriptor):
                _remove(path)
        except OSError:  # no locks here: nobody can tell whether it is being written
            continue
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _unfinished(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Yield a new file or folder beside ``path``, locked as long as it is being written, then removed if still there.

    Args:
        make: makes it, empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_unfinished(path.parent)
    while True:
        part = path.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{path.name}")  # some writers go by the suffix
        make(part)
        descriptor = _open(part)
        with suppress(OSError):  # no locks here: then nobody sweeps either
            if descriptor is not None and not (try_lock(descriptor) and is_at(descriptor, part)):
                os.close(descriptor)  # swept before it was locked
                continue
        break
    try:
        yield part
    finally:
        _remove(part)
        if descriptor is not None:
            os.close(descriptor)


def _to_disk(path: Path) -> None:
    """Have the system write a file or the entries of a folder to the disk itself."""
    descriptor = _open(path)
    if descriptor is not None:
        try:
            if not path.is_dir() or os.name == "posix":
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then move it there: a kill leaves the old or the new."""
    with _unfinished(path, lambda part: part.touch(exist_ok=False)) as part:
        write(part)
        _to_disk(part)
        os.replace(part, path)
        _to_disk(path.parent)


def add_files(folder: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary folder beside ``folder``, then move its files there: each is whole or absent."""
    with _unfinished(folder, Path.mkdir) as part:
        write(part)
        written = sorted(part.iterdir())
        if len(written) > 1 and hasattr(os, "sync"):  # all at once: one by one a thousand small files take seconds
            os.sync()
        else:
            for path in written:
                _to_disk(path)
        folder.mkdir(exist_ok=True)
        for path in written:
            os.replace(path, folder / path.name)
        _to_disk(folder)


@contextmanager
def beside(*paths: Path) -> Iterator[None]:
    """Within it a file is written beside a result, which stands without it: a picture, a table, a cache.

    If that fails, a line says so, and there is no file: an older one would show something else.

    Args:
        paths: of the file, in all its formats.
    """
    try:
        yield
    except Exception as error:  # whatever a disk or another library raises
        left_out(" and ".join(path.name for path in paths), error)
        for path in paths:
            with suppress(OSError):
                path.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to be filled; it becomes ``path``, which is new or empty by then, whole or not at all.

    Raises:
        InputError: if ``path`` holds something.
    """
    with _unfinished(path, Path.mkdir) as part:
        yield part
        for content in part.rglob("*"):
            _to_disk(content)
        try:
            os.rename(part, path)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):  # another process was first
                expected = "a new or an empty folder; it holds something already"
                raise InputError(f"folder={str(path)!r}: expected {expected}") from None
            raise
        _to_disk(path.parent)


def discard(folder: Path) -> None:
    """Remove a folder so that nobody ever sees a part of it."""
    part = folder.with_name(f"{UNFINISHED}{uuid.uuid4().hex[:8]}-{folder.name}")
    with suppress(FileNotFoundError):
        os.rename(folder, part)
    shutil.rmtree(part, ignore_errors=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_json(content: Any, indent: int | None = None) -> str:
    """Return ``content`` as JSON, null for numbers that are not finite: JSON has no NaN, and browsers refuse it.

    What of a file's name is not UTF-8 stands there as an escape, and is read as it was.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    text = json.dumps(plain(content), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_atomically(path, lambda p: p.write_text(to_json(content, indent=2) + "\n", encoding="utf-8"))


@cache
def processor() -> str:
    """Return what the processor calls itself, "AMD EPYC 9R14 Processor"."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def provenance(device: torch.device | str = "cpu", **facts: Any) -> dict[str, Any]:
    """Return what made an artefact: code version and commit, time, machine and device, and the given facts."""
    device = torch.device(device)
    return {
        "version": sde_diffusion.__version__,
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {processor()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **facts,
    }
