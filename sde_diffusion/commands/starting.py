"""Ctrl-C while modules are imported."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    print("sde-diffusion: stopped", file=sys.stderr, flush=True)
    os._exit(128 + number)


@contextmanager
def stopped_at_once() -> Iterator[None]:
    """Within it, Ctrl-C ends the process in one line.

    An exception will not do: an import that is interrupted may turn it into another, or swallow it and go on.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, as under nohup
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
