"""Drawing samples from a run, batch by batch, and what is shown of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from samplers import Sampler
from sde_diffusion.errors import require, require_int
from sde_diffusion.evaluation.pictures import is_picture, save_examples, save_grid, save_strip
from sde_diffusion.files import beside, write_atomically
from sde_diffusion.memory import require_memory
from sde_diffusion.records import write_record
from sde_diffusion.terminal import progress

if TYPE_CHECKING:
    from sde_diffusion.runs.run import Run
    from sde_diffusion.sde import SDE

STRIP_ROWS, STRIP_COLUMNS = 8, 12
STRIP_POINTS = 500
"""Of vectors, as many points as show a cloud."""


@dataclass(frozen=True)
class Strip:
    """The first samples on their way, at a few times.

    Attributes:
        times: of the states, float64 (columns, rows), falling; a sample has its own where the sampler chooses them.
        states: x_t in model space, float32 (columns, rows, *).
        scale: √(α² + σ²) at these times, (columns, rows): what is drawn is x_t over it, of about unit size.
    """

    times: Tensor
    states: Tensor
    scale: Tensor

    def save_picture(self, path: Path) -> None:
        """Draw it, a column a time; above it stands the time of the first sample."""
        drawn = self.states / self.scale.reshape(*self.scale.shape, *[1] * (self.states.ndim - 2)).float()
        save_strip(path, list(drawn), self.times[:, 0].tolist())

    def save_arrays(self, path: Path) -> None:
        """Write ``times``, ``states`` and ``scale`` as ``.npz``."""
        arrays: dict[str, Any] = {name: values.numpy() for name, values in vars(self).items()}
        write_atomically(path, lambda p: np.savez_compressed(p, **arrays))


@dataclass(frozen=True)
class Drawn:
    """Samples and what they cost.

    Attributes:
        x: samples as the data are, (n, *), on the CPU: grey levels of pictures, the units of other data.
        z: the same in model space.
        nfe: counted evaluations of a sample, the mean.
        seconds: of sampling.
        strip: the first samples on their way, if that was asked for.
        sampler: what drew them.
        seed: of their noise.
        noise: "independent" or "brownian".
        conditions: what they are conditioned on, by name, (n, *) each.
    """

    x: Tensor
    z: Tensor
    nfe: float
    seconds: float
    strip: Strip | None
    sampler: Sampler
    seed: int
    noise: str
    conditions: dict[str, Any]


def strip_rows(shape: tuple[int, ...]) -> int:
    """Return how many samples of a shape are shown on their way."""
    return STRIP_POINTS if len(shape) == 1 else STRIP_ROWS


class _Way:
    """States of the first samples on their way."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._seen: list[tuple[Tensor, Tensor]] = []

    def add(self, t: Tensor, x: Tensor) -> None:
        self._seen.append((t[: self._rows].cpu().double(), x[: self._rows].float().cpu().clone()))

    def strip(self, sde: SDE) -> Strip:
        """Return as many of them as a strip has columns, evenly spread.

        Raises:
            InputError: if there are none.
        """
        expected = "a sampler that tells its callback of its states"
        require(len(self._seen) > 0, "trajectory", True, expected, "draw without it")
        picked = torch.linspace(0, len(self._seen) - 1, min(STRIP_COLUMNS, len(self._seen))).round().long().tolist()
        times, states = (torch.stack([self._seen[i][part] for i in picked]) for part in (0, 1))
        return Strip(times, states, (sde.alpha(times) ** 2 + sde.sigma(times) ** 2).sqrt())


def num_steps(sampler: Sampler, batches: int) -> int | None:
    """Return how many steps batches take, the denoising one of each included; None if the sampler chooses its own."""
    return batches * sampler.num_steps if hasattr(sampler, "num_steps") else None


def draw(
    run: Run,
    sampler: Sampler,
    n: int,
    *,
    batch_size: int,
    seed: int,
    noise: str = "independent",
    quiet: bool = False,
    trajectory: bool = False,
    first_index: int = 0,
    float32: bool = False,
    conditions: Mapping[str, Any] | None = None,
    on_step: Callable[[int], object] | None = None,
) -> Drawn:
    """Draw ``n`` samples of a seed in batches, with a progress bar over solver steps.

    Args:
        noise: as of :meth:`samplers.Sampler.draw`.
        trajectory: keep the states of the first samples, of the first batch, on their way.
        first_index: number of the first sample.
        float32: with the network in float32, whatever the configuration says.
        conditions: what the samples are conditioned on, (n, *) each.
        on_step: called with 0 at the start of a batch and with 1 after each step, in place of a bar.
    """
    require_int("n", n, 1)
    require_int("batch_size", batch_size, 1)
    require_memory("num_samples", n, 2 * 4 * n * math.prod(run.shape), "x and z", "draw fewer")
    denoiser = run.float32 if float32 else run.denoiser_of(sampler)
    z, nfe, seconds = torch.empty(n, *run.shape), torch.empty(n, dtype=torch.float64), 0.0
    way = _Way(strip_rows(run.shape))
    hidden, total = quiet or on_step is not None, num_steps(sampler, -(-n // batch_size))
    with progress(total, "step", "sample", hidden) as bar:
        count = on_step or bar.update
        for first in range(0, n, batch_size):
            last = min(first + batch_size, n)

            def see(step: int, t: Tensor, x: Tensor, first: int = first) -> None:
                count(int(step > 0))
                if trajectory and first == 0:
                    way.add(t, x)

            start = time.perf_counter()
            part = {name: value[first:last] for name, value in (conditions or {}).items()}
            result = sampler.draw(
                denoiser,
                (last - first, *run.shape),
                seed,
                first_index=first_index + first,
                noise=noise,
                device=run.device,
                callback=see,
                **part,
            )
            z[first:last], nfe[first:last] = result.x.cpu(), result.nfe_per_sample.cpu()
            seconds += time.perf_counter() - start
    x = torch.cat([run.codec.decode(part) for part in torch.split(z, batch_size)])
    strip = way.strip(denoiser.sde) if trajectory else None
    return Drawn(x, z, float(nfe.mean()), seconds, strip, sampler, seed, noise, dict(conditions or {}))


def show(run: Run, path: Path, z: Tensor, data: Tensor | None = None, columns: int | None = None) -> None:
    """Draw samples: pictures as a grid, other data as figures of their kind, beside the data if they are given.

    Args:
        z: samples in model space, (N, *).
        data: examples, as the data set holds them.
        columns: of a grid.
    """
    with beside(path):
        if is_picture(run.shape):
            save_grid(path, z, columns)
        else:
            save_examples(path, run.codec.decode(z), data, run.columns)


def save_arrays(path: Path, arrays: Mapping[str, Any], facts: dict[str, Any]) -> None:
    """Write samples as ``.npz``, arrays by name, and what made them as a record beside it, ``.json``."""
    write_record(path.with_suffix(".json"), facts)
    content: dict[str, Any] = {name: np.asarray(values) for name, values in arrays.items()}
    write_atomically(path, lambda p: np.savez_compressed(p, **content))
