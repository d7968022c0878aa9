"""What is logged of a training: ``train.jsonl`` and TensorBoard's files. It goes on where they cannot be written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sde_diffusion.errors import require
from sde_diffusion.files import write_atomically
from sde_diffusion.records import as_line, drop_torn_line, read_lines
from sde_diffusion.terminal import left_out

LOG = "train.jsonl"
BOARD = "tensorboard"

Sink = Callable[[int, dict[str, float]], None]
"""``sink(step, values)`` keeps the values of a step."""


def read_log(workdir: Path) -> list[dict[str, float]]:
    """Return what was logged of a training, a dictionary with "step", "loss" and "learning_rate" a line.

    Raises:
        InputError: if a line is damaged; names it.
    """

    def check(line: dict[str, Any]) -> None:
        for key in ("step", "loss", "learning_rate"):
            require(isinstance(line.get(key), (int, float)), key, line.get(key), "a number")

    return read_lines(workdir / LOG, "one of a training", check)


class TrainingLog:
    """Loss and learning rate by step; lines past ``step`` are dropped. What cannot be written is left out, and said."""

    def __init__(self, workdir: Path, step: int) -> None:
        self._open = ExitStack()
        self._sinks: dict[str, Sink] = {}
        for name, begin in ((LOG, _lines), (BOARD, self._board)):
            try:
                self._sinks[name] = begin(workdir, step)
            except Exception as error:  # TensorBoard is missing, the disk full, a line damaged …
                left_out(f"{name} from step {step} on", error)

    def _board(self, workdir: Path, step: int) -> Sink:
        from torch.utils.tensorboard import SummaryWriter

        self._open.enter_context(_writing_thread())
        writer = SummaryWriter(workdir / BOARD, purge_step=step)
        self._open.callback(writer.close)

        def write(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        return write

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append the values of a step, wherever that goes."""
        for name, sink in list(self._sinks.items()):
            try:
                sink(step, values)
            except Exception as error:  # whatever a disk or another library raises
                del self._sinks[name]
                left_out(f"{name} from step {step} on", error)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        try:
            self._open.close()
        except Exception as error:
            if BOARD in self._sinks:  # else it is said already
                left_out(f"the end of {BOARD}", error)


@contextmanager
def _writing_thread() -> Iterator[None]:
    """Print no traceback of TensorBoard's thread on a full disk: its next write raises the same error here."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, OSError):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _lines(workdir: Path, step: int) -> Sink:
    """Return what appends to the file of records, which is cut to those up to ``step``."""
    path, text = workdir / LOG, "".join(as_line(line) for line in read_log(workdir) if line["step"] <= step)
    if path.exists() and path.read_bytes() != text.encode("utf-8"):
        write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))

    def write(step: int, values: dict[str, float]) -> None:
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(as_line({"step": step, **values}))
        except OSError:
            drop_torn_line(path)
            raise

    return write
