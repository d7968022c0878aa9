"""Reading what another project says of its network in JSON: every value is known here, or refused by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sde_diffusion.errors import InputError, require
from sde_diffusion.reading import read_json, require_file


def read_config(path: Path, expected: str) -> dict[str, Any]:
    """Return the object of a JSON file; ``expected`` says what it should have been where it is none."""
    content = read_json(require_file("source", path, expected))
    require(isinstance(content, dict), "source", str(path), expected)
    return dict(content)


def refuse(path: Path, key: str, value: Any, reason: str) -> InputError:
    """Return the error that names a file's key and value and says why not."""
    return InputError(f"{path}: {key}={value!r}: {reason}")


def build(path: Path, make: Callable[..., Any], name: str, **options: Any) -> Any:
    """Make something by its name and options, which a file says."""
    try:
        return make(name, **options)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def require_known(path: Path, key: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse a value that is none of the known ones.

    A program wrote it: what is spelt like it is no better guess than the others, and may mean something else.
    """
    if value not in known:
        raise refuse(path, key, value, f"not supported; supported: {', '.join(map(str, known))}")
