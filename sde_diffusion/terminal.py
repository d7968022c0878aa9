"""Lines for the person at the terminal."""

from __future__ import annotations

import sys


def say(text: str, quiet: bool = False) -> None:
    """Print what was done."""
    if not quiet:
        print(text, file=sys.stdout, flush=True)


def notice(text: str) -> None:
    """Print in one line on standard error what was not as it should be, though the work goes on."""
    print(f"sde-diffusion: {' '.join(text.split())}", file=sys.stderr, flush=True)
