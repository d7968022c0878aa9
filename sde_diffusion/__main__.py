"""``python -m sde_diffusion`` and the ``sde-diffusion`` command."""

from __future__ import annotations

import sys


def start() -> int:
    """Run the command line; what it imports too is stopped by Ctrl-C in one line."""
    try:
        from sde_diffusion.commands.main import main

        return main()
    except KeyboardInterrupt:
        print("sde-diffusion: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(start())
