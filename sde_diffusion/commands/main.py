"""``sde-diffusion COMMAND --flag=value …``: finds the command, reads its flags, turns bad input into one line."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from absl import flags

import sde_diffusion
from sde_diffusion.commands.starting import stopped_at_once
from sde_diffusion.errors import InputError, require
from sde_diffusion.registry import hint

COMMANDS = {
    "train": "train a denoiser; resumes from the newest checkpoint of its workdir",
    "sample": "draw samples from a trained run with any sampler",
    "likelihood": "score a data set or pictures: exact log-likelihood, bounds, bits/dim, error budget",
    "benchmark": "sweep samplers and step counts: FID or FD, KID, precision, recall against evaluations",
    "report": "write one page of a run, or of several side by side: curves, samples, likelihood, training",
    "samplers": "print the table of samplers",
    "verify": "certify every sampler and the likelihood on every SDE against closed form",
    "convert": "make a workdir of another project's checkpoint, for all of the above",
    "tour": "the main job on built-in data: train on digits, score, sweep every sampler, report",
}

TRAINING = ("train", "tour")
"""Commands that train."""

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors that are the disk's: it is full, or may not be written to."""

PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
"""Errors of a path that was given: there is no such place, or it is another's."""


def usage() -> str:
    """Return the help of the program."""
    rows = "\n".join(f"  {name:10} {summary}" for name, summary in COMMANDS.items())
    return (
        f"sde-diffusion {sde_diffusion.__version__}: score-based diffusion models as SDEs\n\n"
        f"usage: sde-diffusion COMMAND [--flag=value …]\n\n{rows}\n\n"
        "sde-diffusion COMMAND --help lists the flags of a command."
    )


def _sole_trainer(name: str, values: flags.FlagValues) -> AbstractContextManager[None]:
    """Keep other trainings out of the workdir of one, from before its configuration is read."""
    from sde_diffusion.locks import one_writer

    trains = name in TRAINING and bool(values.workdir)
    return one_writer(Path(values.workdir), "training") if trains else nullcontext()


def _require_one_process() -> None:
    """Refuse to be one of several processes: each would do all of the work and write the same files."""
    count = os.environ.get("WORLD_SIZE", "1")
    expected = "1 process; several are not supported yet"
    require(count in ("", "1"), "WORLD_SIZE", count, expected, "start the command alone, not with torchrun")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns 0, or 1 where a check failed or the disk is full, or 2 on bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no σ shall not end an hour's work
    if not arguments or arguments[0] in ("help", "--help", "-h"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(sde_diffusion.__version__)
        return 0
    name = arguments[0]
    try:
        _require_one_process()
        if name not in COMMANDS:
            known = list(COMMANDS)
            raise InputError(f"command={name!r}: unknown{hint(name, known)} commands: {', '.join(known)}")
        # The command's module brings in torch and the rest: only now, so that the help above is instant.
        with stopped_at_once() if argv is None else nullcontext():
            from sde_diffusion.commands.flags import parse, resolve

            command = importlib.import_module(f"sde_diffusion.commands.{name}")
        values, overrides = parse(name, COMMANDS[name], command.define_flags, arguments[1:])
        with _sole_trainer(name, values):
            config = resolve(values, overrides, getattr(command, "base_config", None))
            return int(command.run(values, config) or 0)
    except (InputError, flags.Error) as error:
        print(f"sde-diffusion: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        text = str(stop) or "stopped; finished checkpoints and files are kept"
        print(f"sde-diffusion: {text}", file=sys.stderr)
        return 128 + int(getattr(stop, "number", signal.SIGINT))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `… | head` has what it wanted
        return 0
    except OSError as error:
        if error.errno in PLACE and error.filename:
            print(f"sde-diffusion: {error.filename}: {os.strerror(error.errno)}; give another path", file=sys.stderr)
            return 2
        if error.errno not in DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"sde-diffusion: {where}{os.strerror(error.errno)}; nothing is left half-written, and what was finished is "
            "kept: make room and run the same command again",
            file=sys.stderr,
        )
        return 1
    except Exception as error:
        from sde_diffusion.memory import exhausted

        if not (text := exhausted(error)):
            raise
        print(f"sde-diffusion: {text}", file=sys.stderr)
        return 2
    except SystemExit as done:
        return int(done.code or 0)
