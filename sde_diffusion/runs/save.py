"""Samples drawn into files, shard by shard: whole or absent, never overwritten unasked, gone on with after a kill.

A shard is a function of what decides the draw and of the numbers of its samples: drawn after a kill, in batches of the
same size, it is bit for bit what it would have been without. The record counts the samples whose shards are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from samplers import Sampler
from sde_diffusion.codecs.grey_levels import to_uint8
from sde_diffusion.errors import require, require_int
from sde_diffusion.evaluation.pictures import is_picture, save_pictures
from sde_diffusion.files import add_files, beside, provenance, write_atomically
from sde_diffusion.locks import one_writer
from sde_diffusion.records import read_record, write_record
from sde_diffusion.runs.sample import Drawn, draw, num_steps, show
from sde_diffusion.runs.sample_files import SampleFiles, identity, name_of_draw
from sde_diffusion.stored_config import chosen
from sde_diffusion.terminal import progress
from sde_diffusion.training.interrupts import Interrupts, Stopped

if TYPE_CHECKING:
    from sde_diffusion.runs.run import Run

FORMATS = ("npz", "png")
SHARD_SIZE = 1000
GRID = 256
"""Pictures that are shown at most; of other data the figure is of the first shard."""


@dataclass(frozen=True)
class SavingOptions:
    """Where samples are written, and how.

    Attributes:
        out: folder in which they are called ``samples``; by default ``samples/`` of the run, with a name of their own.
        format: "npz", or "png" for pictures of grey levels.
        shard_size: samples that are held in memory, and written, at a time.
        trajectory: also show a few, of the first batch, on their way.
        overwrite: draw all anew, in the place of what draw there is.
    """

    out: Path | None = None
    format: str = "npz"
    shard_size: int = SHARD_SIZE
    trajectory: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        require(self.format in FORMATS, "format", self.format, f"one of {', '.join(FORMATS)}")
        require_int("shard_size", self.shard_size, 1)
        free = self.out is None or not self.out.exists() or self.out.is_dir()
        require(free, "out", str(self.out), "a folder, there or not; it is a file", "give another path")


@dataclass(frozen=True)
class Saved:
    """Samples that are in files.

    Attributes:
        files: the array, or the folder of shards or pictures; the record; the figure; those of the trajectory.
        sampler: what drew them.
        count: how many there are.
        before: how many of them there were before.
        changed: whether anything had to be written.
        shown: how many of them the figure is of.
        nfe: counted evaluations of a sample, the mean.
        seconds: of sampling, all of them.
    """

    files: tuple[Path, ...]
    sampler: Sampler
    count: int
    before: int
    changed: bool
    shown: int
    nfe: float
    seconds: float


def save_samples(
    run: Run,
    sampler: Sampler,
    n: int,
    options: SavingOptions,
    *,
    seed: int,
    batch_size: int,
    conditions: Mapping[str, Tensor],
    noise: str = "independent",
    quiet: bool = False,
) -> Saved:
    """Draw what there is not yet of ``n`` samples, and write it.

    Args:
        conditions: what the samples are conditioned on, (n, *) each.
        noise: as of :meth:`samplers.Sampler.draw`.

    Raises:
        InputError: if another draw is there, or files of which no record tells; on pictures of what is none.
        Stopped: on Ctrl-C and SIGTERM, after whole shards.
    """
    require_int("batch_size", batch_size, 1)
    saving = _Saving(run, sampler, n, options, seed, batch_size, conditions, noise)
    files = saving.files
    with one_writer(files.stem.parent, files.stem.name):
        record = saving.found()
        todo = [first for first in range(0, n, files.size) if saving.lacks(first, record.get("drawn", 0))]
        record = saving.go(todo, record, quiet)
    before = n - sum(map(files.count, todo))
    return Saved(files.all, sampler, n, before, bool(todo), saving.shown, record["nfe"], record["seconds"])


class _Saving:
    """One draw on its way into its files."""

    def __init__(
        self,
        run: Run,
        sampler: Sampler,
        n: int,
        options: SavingOptions,
        seed: int,
        batch_size: int,
        conditions: Mapping[str, Tensor],
        noise: str,
    ) -> None:
        drawable = options.format != "png" or (run.levels is not None and is_picture(run.shape))
        expected = f"npz, for samples of shape {run.shape} are no pictures of grey levels"
        require(drawable, "format", options.format, expected)
        self.run, self.sampler, self.n, self.options = run, sampler, n, options
        self.seed, self.batch_size, self.noise = seed, batch_size, noise
        self.conditions = {name: values.cpu() for name, values in conditions.items()}
        size = min(options.shard_size, n)
        layout = {"noise": noise, "format": options.format, "shard_size": size}
        self.identity = identity(run, sampler, n, seed, self.conditions, layout)
        name = name_of_draw(run, sampler, n, seed, self.conditions, self.identity)
        stem = options.out / "samples" if options.out else run.workdir / "samples" / name
        self.files = SampleFiles(stem, n, size, options.format, options.trajectory)
        self.shown = min(size, GRID) if is_picture(run.shape) else size

    def found(self) -> dict[str, Any]:
        """Return the record of what there is of this draw; an empty one if there is nothing, or it is to be replaced.

        Raises:
            InputError: if another draw is there, or files of which no record tells.
        """
        path = self.files.record
        if not path.exists():
            taken = ", ".join(map(str, self.files.taken()))
            require(not taken, "out", taken, f"nothing there, for no {path.name} tells what it is", "move it away")
            return {}
        record = read_record(path)
        known = {"identity": dict, "drawn": int, "nfe": float, "seconds": float}
        whole = all(isinstance(record.get(key), kind) for key, kind in known.items())
        require(whole, "out", str(path), "a record of samples, or no such file", "give another --out")
        if self.options.overwrite:
            return {}
        other = [key for key, value in self.identity.items() if record["identity"].get(key) != value]
        expected = f"no samples of another draw there; these differ in {', '.join(other)}"
        require(not other, "out", str(path), expected, "give another --out, or --overwrite to replace them")
        return record

    def lacks(self, first: int, drawn: int) -> bool:
        """Return whether a shard is to be drawn: it is not among those counted, or a file of it is gone."""
        wanted = [*self.files.shard(first), *(self.files.figures if first == 0 else ())]
        return first >= drawn or not all(path.exists() for path in wanted)

    def go(self, todo: list[int], record: dict[str, Any], quiet: bool) -> dict[str, Any]:
        """Draw and write shards under a progress bar over all of them; returns the record."""
        total = num_steps(self.sampler, sum(-(-self.files.count(first) // self.batch_size) for first in todo))
        hidden = quiet or not todo
        with Interrupts() as stop, progress(total, "step", "sample", hidden) as bar:

            def on_step(count: int) -> None:
                bar.update(count)
                if stop.number is not None:
                    raise Stopped(self._stopped(record), stop.number)

            for first in todo:
                bar.set_postfix_str(f"{first:,} of {self.n:,} samples")
                record = self._shard(first, record, on_step)
        return record

    def _stopped(self, record: dict[str, Any]) -> str:
        if not record.get("drawn"):
            return "stopped before the first shard was drawn; nothing is written"
        again = "the same command" + (" without --overwrite" if self.options.overwrite else "")
        return f"stopped with {record['drawn']} of {self.n} samples in {self.files.stem}; {again} goes on from there"

    def _shard(self, first: int, record: dict[str, Any], on_step: Callable[[int], object]) -> dict[str, Any]:
        """Draw and write one shard and return the record that counts it; nothing of the shard is held any longer."""
        count = self.files.count(first)
        last = first + count
        drawn = draw(
            self.run,
            self.sampler,
            count,
            batch_size=self.batch_size,
            seed=self.seed,
            noise=self.noise,
            trajectory=self.options.trajectory and first == 0,
            first_index=first,
            conditions={name: values[first:last] for name, values in self.conditions.items()},
            on_step=on_step,
        )
        record = record or self._begin()
        self._write(first, drawn)
        before = record["drawn"]
        if last <= before:
            return record
        nfe = (before * record["nfe"] + count * drawn.nfe) / last
        record = {**record, "drawn": last, "nfe": nfe, "seconds": round(record["seconds"] + drawn.seconds, 3)}
        if last == self.n and self.options.format == "png":  # at the end, once, for they are long
            record["conditions"] = {name: values.tolist() for name, values in self.conditions.items()}
        write_record(self.files.record, record)
        return record

    def _begin(self) -> dict[str, Any]:
        """Write the record, before all else; what it is to replace goes first."""
        self.files.clear()
        record = provenance(
            self.run.device,
            seed=self.seed,
            checkpoint=str(self.run.checkpoint),
            step=self.run.step,
            sampler=repr(self.sampler),
            dtype=self.run.dtype,
            config=chosen(self.run.config),
            identity=self.identity,
            drawn=0,
            nfe=0.0,
            seconds=0.0,
        )
        write_record(self.files.record, record)
        return record

    def _write(self, first: int, drawn: Drawn) -> None:
        """Write a shard, and with the first the figures; what is there stays as it is."""
        lacking = [path for path in self.files.shard(first) if not path.exists()]
        if lacking and self.options.format == "png":
            pictures = to_uint8(drawn.x, self.run.levels or 0)
            named = {path.name: pictures[int(path.stem) - first] for path in lacking}
            add_files(self.files.stem, lambda folder: save_pictures(folder, named))
        elif lacking:
            self._write_arrays(lacking[0], {"x": drawn.x, "z": drawn.z, **drawn.conditions})
        if first > 0:
            return
        figure, *trajectory = self.files.figures
        if not figure.exists():
            show(self.run, figure, drawn.z[: self.shown], self.run.data_beside)
        for path in trajectory:
            if drawn.strip is not None and not path.exists():
                with beside(path):
                    (drawn.strip.save_picture if path.suffix == ".png" else drawn.strip.save_arrays)(path)

    def _write_arrays(self, path: Path, values: dict[str, Tensor]) -> None:
        arrays: dict[str, Any] = {name: value.numpy() for name, value in values.items()}
        if path.parent == self.files.stem:  # where nothing but whole shards is to be seen, not even after a kill
            add_files(path.parent, lambda folder: np.savez_compressed(folder / path.name, **arrays))
        else:
            write_atomically(path, lambda p: np.savez_compressed(p, **arrays))
