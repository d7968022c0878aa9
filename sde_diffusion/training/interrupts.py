"""Ctrl-C and SIGTERM as a wish to stop: work goes on to a place from which it can be continued."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Work that was stopped by a signal, and what to do to go on.

    Attributes:
        number: of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


class Interrupts:
    """Within it the first signal is noted in ``number`` and the second one is as ever.

    Only the main thread is told of signals: in others this does nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS} if main else {}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
