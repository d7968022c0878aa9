"""Which commit of this package runs: that of its checkout, or the one that was noted when it was installed.

The standard library alone, since ``setup.py`` reads this file before anything is installed.
"""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

NOTE = "COMMIT"
"""File in the installed package."""


def commit_of(checkout: Path) -> str | None:
    """Return the commit of a checkout, with "+" if its files were changed since; None where there is none."""
    if not (checkout / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(checkout)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


@cache
def commit() -> str | None:
    """Return the commit of this package; None if it was installed from files that are no checkout."""
    package = Path(__file__).resolve().parent
    note = package / NOTE
    return commit_of(package.parent) or (note.read_text(encoding="utf-8") if note.exists() else None)
