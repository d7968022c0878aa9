"""Lines for the person at the terminal, and what stands for a progress bar in a log file."""

from __future__ import annotations

import io
import sys

import pytest

from sde_diffusion import terminal
from sde_diffusion.terminal import LINES_EVERY, progress


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    return clock


@pytest.mark.parametrize("total", [1000, None])
def test_a_log_file_gets_a_plain_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, total: int | None
) -> None:
    """Ten minutes of steps of a second each, each drawn: ten lines, whole, in order, and no carriage returns."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress(total, "step", "train", done=7) as bar:
        for step in range(int(10 * LINES_EVERY)):
            clock.now += 1.0
            bar.update()
            bar.set_postfix(loss=f"{step:.1f}")
    text = log.getvalue()
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) == 10
    assert text == "".join(f"{line}\n" for line in lines)
    for line in lines:
        assert line.startswith("train: step ")
    assert ("of 1000" in lines[0]) == (total is not None)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress(3, "step", "train"):
        pass
    assert screen.getvalue().startswith("\r")
    assert "0/3" in screen.getvalue()


def test_quiet_is_neither(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    for screen in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", screen)
        with progress(3, "step", "train", quiet=True) as bar:
            clock.now += 10 * LINES_EVERY
            bar.update()
        assert screen.getvalue() == ""
