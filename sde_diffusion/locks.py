"""Locks of the operating system: one writer at a time, and traces of writers that are gone.

A lock belongs to a process and ends with it, however it ends, so that a killed one never blocks the next. Ours and not
the package ``filelock``, which empties the file that it locks: there would be no place for the holder's name, and it
locks no folders.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sde_diffusion.errors import InputError
from sde_diffusion.terminal import notice

_HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)
_FAR = 1 << 30  # Windows locks bytes, and forbids to read them: one that no holder's name reaches


def try_lock(descriptor: int) -> bool:
    """Lock an open file (or folder, where the system has it) if nobody else has; returns whether it did."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file or folder is what lies at ``path``, and not removed or replaced since."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def one_writer(workdir: Path, record: str) -> Iterator[None]:
    """Be the only process that writes a record of a run; readers need no lock and never wait.

    ``.RECORD.lock`` in the workdir names the holder while there is one. One that a killed process has left is taken
    over. A workdir that is new and stays empty is removed again.

    Args:
        workdir: folder of the run; made if it is not there.
        record: what is written: "training", "benchmark", "likelihood" …

    Raises:
        InputError: at once, if another process has it; names that process.
    """
    new = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / f".{record}.lock"
    descriptor = _hold(path, workdir, record)
    try:
        yield
    finally:
        if sys.platform != "win32":  # there an open file cannot be removed: it is taken over by the next writer
            path.unlink(missing_ok=True)  # before the lock ends, so that it is never another's
        os.close(descriptor)
        if new:
            with suppress(OSError):
                workdir.rmdir()


def _hold(path: Path, workdir: Path, record: str) -> int:
    """Open and lock the file at ``path`` and write into it who holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            free = try_lock(descriptor)
        except OSError as error:
            notice(f"{workdir}: its file system has no locks ({error.strerror}); let no other process write to it")
            free = True
        if not free:
            os.close(descriptor)
            with suppress(OSError):
                if holder := path.read_text(encoding="utf-8").strip():
                    break
            if path.exists():
                holder = "another process"
                break
        elif is_at(descriptor, path):
            command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime())
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            holder = f"process {os.getpid()} on {platform.node()} since {since} ({command})\n"
            os.write(descriptor, holder.encode("utf-8", "backslashreplace"))  # a path may be no UTF-8
            return descriptor
        else:  # its holder has removed it in between
            os.close(descriptor)
    raise InputError(
        f"workdir={str(workdir)!r}: its {record} is being written by {holder}; wait for it, stop it, or take another "
        "workdir"
    )
