"""Where the samples of a draw lie, and what tells one draw from another.

STEM.npz                        of a draw that is one shard: x, z in model space, and the conditions by name
STEM/000000.npz, 001000.npz …   of a longer one, named by the number of the first sample
STEM/000000.png, 000001.png …   or pictures, 8-bit grey or RGB, named by the number of the sample, and nothing else
STEM.json                       what made them, and how many of them are there
STEM.png                        the first of them
STEM_trajectory.png, .npz       a few of them on their way, and their states and times
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import sde_diffusion
from samplers import Sampler
from sde_diffusion.evaluation.metrics import content_hash
from sde_diffusion.files import sha256, to_json

if TYPE_CHECKING:
    from sde_diffusion.runs.run import Run

TRAJECTORY = ("_trajectory.png", "_trajectory.npz")
FILES = (".npz", ".png", *TRAJECTORY)
"""Endings of what may lie beside the record."""


@dataclass(frozen=True)
class SampleFiles:
    """The files of ``n`` samples.

    Attributes:
        stem: what they are called, without an ending; it may have dots of its own.
        size: samples of a shard, at most n.
        format: "npz" or "png".
        trajectory: whether some are shown on their way.
    """

    stem: Path
    n: int
    size: int
    format: str
    trajectory: bool

    def beside(self, end: str) -> Path:
        """Return the file of an ending."""
        return self.stem.with_name(f"{self.stem.name}{end}")

    @property
    def record(self) -> Path:
        """What made them."""
        return self.beside(".json")

    @property
    def figures(self) -> list[Path]:
        """What is written with the first shard, beside it."""
        return [self.beside(end) for end in (".png", *(TRAJECTORY if self.trajectory else ()))]

    @property
    def all(self) -> tuple[Path, ...]:
        """The array, or the folder of shards or pictures; then record and figures."""
        return (self.beside(".npz") if self._is_one else self.stem, self.record, *self.figures)

    @property
    def _is_one(self) -> bool:
        return self.format == "npz" and self.size == self.n

    def count(self, first: int) -> int:
        """Return how many samples the shard has that begins with a sample."""
        return min(self.size, self.n - first)

    def shard(self, first: int) -> list[Path]:
        """Return the files of the shard that begins with a sample."""
        if self._is_one:
            return [self.beside(".npz")]
        digits = max(6, len(str(self.n - 1)))
        numbers = range(first, first + self.count(first)) if self.format == "png" else [first]
        return [self.stem / f"{number:0{digits}}.{self.format}" for number in numbers]

    def taken(self) -> list[Path]:
        """Return what there is in the places of any draw, but the record; an empty folder is free."""
        there = [path for path in (self.stem, *map(self.beside, FILES)) if path.exists()]
        return [path for path in there if not path.is_dir() or any(path.iterdir())]

    def clear(self) -> None:
        """Remove the samples of any draw from this place, and nothing else; the record stays."""
        for path in map(self.beside, FILES):
            path.unlink(missing_ok=True)
        if self.stem.is_dir():
            for path in self.stem.iterdir():
                if re.fullmatch(r"\d{6,}\.(npz|png)", path.name):
                    path.unlink()
            with suppress(OSError):  # it holds something else too
                self.stem.rmdir()


def identity(
    run: Run, sampler: Sampler, n: int, seed: int, conditions: Mapping[str, Tensor], layout: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all that decides what is drawn, and its layout: draws that differ in none of it are one, up to rounding.

    Batches change the rounding alone, and are not in it.
    """
    found = {
        "version": sde_diffusion.__version__,
        "plugins": [sha256(Path(name)) for name in run.config.plugins if name.endswith(".py")],
        "checkpoint": run.digest,
        "sde": repr(run.denoiser.sde),
        "model": run.changed,
        "around": run.wrapping(sampler),
        "sampler": {type(sampler).__name__: sampler.options()},
        "seed": seed,
        "num_samples": n,
        "conditions": content_hash(torch.empty(0), conditions) if conditions else None,
        "device": run.device.type,
        "dtype": run.dtype,
        "tf32": bool(run.config.tf32),
        **layout,
    }
    plain: dict[str, Any] = json.loads(to_json(found))
    return plain


def name_of_draw(
    run: Run, sampler: Sampler, n: int, seed: int, conditions: Mapping[str, Tensor], identity: Mapping[str, Any]
) -> str:
    """Return what the files of a draw are called: what a person looks for, and a hash of all that decides it."""
    name = run.name_of(sampler) or type(sampler).__name__
    steps = f"_{sampler.num_steps}" if hasattr(sampler, "num_steps") else ""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{name}{steps}{_class_words(conditions.get('classes'))}_n{n}_seed{seed}_{digest[:8]}"


def _class_words(classes: Tensor | None) -> str:
    """Return what the name of a file says of the classes of samples: each of a few, or their number."""
    if classes is None:
        return ""
    different = torch.unique(classes).tolist()
    return "_class" + ("-".join(map(str, different)) if len(different) <= 5 else f"es{len(different)}")
