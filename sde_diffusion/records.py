"""Records of a run: JSON that carries its own SHA-256, so that damage to what is stored is never taken for a result.

A bit that flips on a disk, or a number changed by hand, is told when a record is read. Records of earlier versions have
no SHA-256 and are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sde_diffusion.errors import InputError, require
from sde_diffusion.files import to_json, write_json
from sde_diffusion.reading import parse_json, read_json, require_file
from sde_diffusion.terminal import notice

SEAL = "sha256"
"""Key of a record under which the SHA-256 of all else in it stands."""


def _fingerprint(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return a record with its own SHA-256 in it, so that damage to what is stored of it can be told."""
    stored = json.loads(to_json(content))
    return {**stored, SEAL: _fingerprint(stored)}


def unsealed(content: Any, where: str) -> dict[str, Any]:
    """Return a record without its SHA-256, which is checked; records of earlier versions have none.

    Raises:
        InputError: if it is no record, or not as it was written.
    """
    require(isinstance(content, dict), where, type(content).__name__, "a JSON object")
    rest = {key: value for key, value in content.items() if key != SEAL}
    broken = content[SEAL] != _fingerprint(rest) if SEAL in content else _seal_is_misnamed(content)
    if broken:
        raise InputError(
            f"{where}: is not as it was written, by its {SEAL}: damaged, or changed by hand; restore it, or if the "
            f"change is meant, remove the key {SEAL!r}"
        )
    return rest


def _seal_is_misnamed(content: dict[str, Any]) -> bool:
    """Return whether a record has its SHA-256 under another key: then it is the key that is damaged."""
    return any(
        seal == _fingerprint({k: v for k, v in content.items() if k != key})
        for key, seal in content.items()
        if isinstance(seal, str) and len(seal) == 64
    )


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write a record as indented JSON with its SHA-256 in it, atomically."""
    write_json(path, sealed(content))


def read_record(path: Path) -> dict[str, Any]:
    """Read a record of a run.

    Raises:
        InputError: if it is missing, not JSON, or not as it was written.
    """
    return unsealed(read_json(path), str(path))


def as_line(content: dict[str, Any]) -> str:
    """Return a record as one line of JSON with its SHA-256 in it."""
    return to_json(sealed(content)) + "\n"


def read_lines(path: Path, expected: str, check: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Read records that stand a line each, none if there is no file; a torn last line is said and left out.

    Args:
        expected: what a line should be, for the message.
        check: raises InputError on a record that is none of those.

    Raises:
        InputError: on another line that is not such a record; names it.
    """
    found, lines = [], _whole_lines(path)
    if path.exists() and path.stat().st_size > sum(map(len, lines)):
        notice(f"{path}: its last line, number {len(lines) + 1}, is torn, as a killed process leaves it, and left out")
    for number, line in enumerate(lines, start=1):
        where = f"{path}: line {number}"
        try:
            found.append(unsealed(parse_json(line, where), where))
            check(found[-1])
        except InputError as error:
            reason = str(error).removeprefix(f"{where}: ")
            text = line.decode("utf-8", "replace").strip()[:60]
            raise InputError(f"{where} is not {expected} ({reason}); repair or remove it: {text!r}") from None
    return found


def _whole_lines(path: Path) -> Sequence[bytes]:
    lines = require_file("record", path).read_bytes().splitlines(keepends=True) if path.exists() else []
    return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines


def drop_torn_line(path: Path) -> None:
    """Take a torn last line off a file of records; for its one writer, before it appends to it."""
    whole = sum(map(len, _whole_lines(path)))
    if path.exists() and path.stat().st_size > whole:
        os.truncate(path, whole)
