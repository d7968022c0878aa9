"""Lines for the person at the terminal, or for the log file in its place."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from sde_diffusion.errors import InputError

if TYPE_CHECKING:
    from tqdm import tqdm

LINES_EVERY = 60.0
"""Seconds between lines on progress where there is no terminal to draw a bar on."""
LINE = "{desc}: {unit} {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left, {rate_fmt}{postfix}"
OPEN_LINE = "{desc}: {unit} {n_fmt}, {elapsed} gone, {rate_fmt}{postfix}"
"""Where it is not known how many there are."""


def say(text: str, quiet: bool = False) -> None:
    """Print what was done."""
    if not quiet:
        print(text, file=sys.stdout, flush=True)


def notice(text: str) -> None:
    """Print in one line on standard error what was not as it should be, though the work goes on."""
    print(f"sde-diffusion: {' '.join(text.split())}", file=sys.stderr, flush=True)


def left_out(what: str, error: Exception) -> None:
    """Say that something beside the work could not be done, which goes on without it."""
    kind = "" if isinstance(error, (OSError, InputError)) else f"{type(error).__name__}: "
    notice(f"{what} is left out: {kind}{error}")


class _Lines:
    """A file for tqdm, which draws over one line by carriage returns and blanks: one drawing a minute, as a line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, time.monotonic()

    def write(self, text: str) -> None:
        now, line = time.monotonic(), text.strip()
        if line and now - self._last >= LINES_EVERY:
            self._stream.write(f"{line}\n")
            self._last = now

    def flush(self) -> None:
        self._stream.flush()


def progress(
    total: int | None, unit: str, desc: str, quiet: bool = False, *, done: int = 0, leave: bool = False
) -> tqdm[NoReturn]:
    """Return a progress bar on standard error, or where that is no terminal but a file, a plain line a minute.

    Args:
        total: number of units, if it is known.
        quiet: neither.
        done: number of units that were done before.
        leave: whether the bar stays when all is done.
    """
    from tqdm import tqdm

    how: dict[str, Any] = {"file": sys.stderr}
    if not sys.stderr.isatty():
        how = {"file": _Lines(sys.stderr), "mininterval": 1.0, "bar_format": OPEN_LINE if total is None else LINE}
    return tqdm(total=total, unit=unit, desc=desc, disable=quiet, initial=done, leave=leave, **how)
