"""``python -m sde_diffusion`` and the ``sde-diffusion`` command."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def start() -> int:
    """Run the command line; Ctrl-C stops what it imports too in one line.

    An interrupted import may raise anything: that there was a Ctrl-C is therefore noted.
    """
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, note)
    try:
        from sde_diffusion.commands.main import main

        return main()
    except BaseException:
        if not seen:
            raise
        print("sde-diffusion: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(start())
