"""What is handed in is looked at before it is read: a file that is one, of a size that memory holds, and plain data.

A named pipe would block its reader, a device never ends, an archive of a few bytes may unfold to terabytes, and JSON
that is nested without end exhausts whoever walks it. Each is refused here, in one line, for every reader.
"""

from __future__ import annotations

import json
import math
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sde_diffusion.errors import InputError, require, shortened
from sde_diffusion.memory import require_memory

DEPTH = 40
"""How deep JSON and YAML may be nested: a configuration is by six, a record by eight."""
TEXT = 1 << 26
"""Largest size of a description in bytes; a record with the scores of a million examples is smaller."""

_ARRAY = b"\x93NUMPY"
"""What an array of NumPy begins with."""
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def no_file(path: str | Path) -> str | None:
    """Return why a path, links followed, is not that of a regular file; None if it is."""
    try:
        kind = os.stat(path).st_mode
    except PermissionError:
        raise
    except OSError as error:
        return f"there is no such file ({error.strerror})"
    except ValueError as error:  # a NUL in the name
        return f"there is no such file ({error})"
    return None if stat.S_ISREG(kind) else f"it is {_KINDS.get(stat.S_IFMT(kind), 'something else')}, not a file"


def require_file(name: str, path: str | Path, expected: str = "an existing file", remedy: str = "") -> Path:
    """Return the path of a regular file, "~" as a person's home; nothing else is ever opened.

    Args:
        name: of the argument.
        path: of the file, or of a link to one.
        expected: what it should be, for the message.
        remedy: what to do instead.

    Raises:
        InputError: if there is nothing, or a folder, a named pipe, a device.
        PermissionError: if a folder on the way to it may not be entered.
    """
    found = Path(os.path.expanduser(path))
    problem = no_file(found)
    require(problem is None, name, str(path), expected, "; ".join(filter(None, (problem, remedy))))
    return found


def parse_json(text: bytes, where: str) -> Any:
    """Return what JSON says, nested no deeper than ``DEPTH``.

    Raises:
        InputError: if it is none.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: expected a JSON file; {shortened(str(error))}") from None
    require_shallow(content, where, len(text))
    return content


def read_json(path: Path, name: str = "file") -> Any:
    """Read a JSON file.

    Raises:
        InputError: if it is no regular file, too large, or not JSON.
    """
    return parse_json(read_text(name, path, "a JSON file"), str(path))


def read_text(name: str, path: str | Path, expected: str = "an existing file", limit: int = TEXT) -> bytes:
    """Return the bytes of a description.

    Raises:
        InputError: if it is no regular file, or has more than ``limit`` bytes.
    """
    found = require_file(name, path, expected)
    size = found.stat().st_size
    require(size <= limit, name, str(path), f"a text of at most {limit:,} bytes", f"it has {size:,}")
    return found.read_bytes()


def require_shallow(content: Any, where: str, most: int) -> None:
    """Refuse plain data that are nested deeper than ``DEPTH``, or that repeat themselves without end.

    Args:
        content: lists and dictionaries in each other.
        where: they were read.
        most: how many values there can be: aliases of YAML make more of fewer bytes.

    Raises:
        InputError: if they are.
    """
    level, count = [content], 0
    for _ in range(DEPTH):
        inner: list[Any] = []
        for value in level:
            parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
            count += len(parts)
            if count > most:
                raise InputError(f"{where}: more values than bytes, for it repeats itself; write them out")
            inner += parts
        level = inner
    if level:
        raise InputError(f"{where}: nested deeper than {DEPTH} levels; it is no description of anything here")


def read_arrays(name: str, path: str | Path, remedy: str = "") -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file; pickled objects are refused, because unpickling runs code.

    Args:
        name: of the argument.
        path: of the file.
        remedy: what to do about one that is damaged.

    Raises:
        InputError: if it is no regular file, no archive of plain arrays, damaged, or larger than memory.
    """
    found = require_file(name, path, "an existing .npz file", remedy)
    try:
        with zipfile.ZipFile(found) as archive:
            require_unfolded(name, path, archive)
            return {info.filename.removesuffix(".npy"): _array(archive, info) for info in archive.infolist()}
    except InputError:
        raise
    except Exception as error:  # whatever a broken archive makes its readers raise
        with open(found, "rb") as file:
            single = file.read(len(_ARRAY)) == _ARRAY
        reason = "a single .npy array; save it with numpy.savez" if single else shortened(f"{error}")
        why = f"not a readable .npz file of plain arrays ({reason or type(error).__name__})"
        raise InputError(f"{name}={str(path)!r}: {why}" + (f"; {remedy}" if remedy else "")) from None


def require_unfolded(name: str, path: str | Path, archive: zipfile.ZipFile) -> None:
    """Refuse a zip archive whose files do not fit into memory.

    Raises:
        InputError: names their size.
    """
    size = sum(info.file_size for info in archive.infolist())
    require_memory(name, str(path), size, "what it unfolds to")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Read one array, whose header must not claim more than there is."""
    with archive.open(info) as file:
        if file.read(len(_ARRAY)) != _ARRAY:
            raise ValueError(f"{info.filename} is no array")
        file.seek(0)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        size = math.prod(shape) * dtype.itemsize
        there = info.file_size - file.tell()
        if dtype.hasobject or size != there:
            content = "objects, which could run code" if dtype.hasobject else f"{size} bytes by its header, not {there}"
            raise ValueError(f"{info.filename} has {content}")
        file.seek(0)
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # to the end, where the checksum is compared
        return array
