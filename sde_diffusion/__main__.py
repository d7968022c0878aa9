"""``python -m sde_diffusion`` and the ``sde-diffusion`` command."""

from __future__ import annotations

import sys

from sde_diffusion.commands.starting import stopped_at_once


def start() -> int:
    """Run the command line; Ctrl-C stops what it imports too in one line."""
    with stopped_at_once():
        from sde_diffusion.commands.main import main
    return main()


if __name__ == "__main__":
    sys.exit(start())
