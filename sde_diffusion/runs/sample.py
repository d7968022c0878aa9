"""Drawing samples from a run, batch by batch, and the files that they are kept in."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from samplers import Sampler
from sde_diffusion.errors import require_int
from sde_diffusion.evaluation.pictures import is_picture, save_examples, save_grid, save_strip
from sde_diffusion.files import beside, provenance, write_atomically
from sde_diffusion.memory import require_memory
from sde_diffusion.ops import column
from sde_diffusion.records import write_record
from sde_diffusion.stored_config import chosen
from sde_diffusion.terminal import progress

if TYPE_CHECKING:
    from sde_diffusion.runs.run import Run
    from sde_diffusion.sdes import SDE

STRIP_ROWS, STRIP_COLUMNS = 8, 12
STRIP_POINTS = 500
"""Of vectors, as many points as show a cloud."""


@dataclass(frozen=True)
class Drawn:
    """Samples and what they cost.

    Attributes:
        x: samples as the data are, (n, *), on the CPU: grey levels of pictures, the units of other data.
        z: the same in model space.
        nfe: counted evaluations of a sample, the mean.
        seconds: of sampling.
        strip: times and states (rows, *) of the first samples on their way, if they were asked for.
        sampler: what drew them.
        seed: of their noise.
        conditions: what they are conditioned on, by name, (n, *) each.
    """

    x: Tensor
    z: Tensor
    nfe: float
    seconds: float
    strip: list[tuple[float, Tensor]]
    sampler: Sampler
    seed: int
    conditions: dict[str, Any]


def strip_rows(shape: tuple[int, ...]) -> int:
    """Return how many samples of a shape are shown on their way."""
    return STRIP_POINTS if len(shape) == 1 else STRIP_ROWS


class _Strip:
    """States of the first samples on their way, at unit size at all noise levels."""

    def __init__(self, sde: SDE, rows: int) -> None:
        self._sde, self._rows = sde, rows
        self._seen: list[tuple[float, Tensor]] = []

    def add(self, t: Tensor, x: Tensor) -> None:
        now = t.reshape(-1)[: self._rows].double()
        scale = (self._sde.alpha(now) ** 2 + self._sde.sigma(now) ** 2).rsqrt()
        self._seen.append((float(now[0]), x[: self._rows].double().cpu() * column(scale.cpu(), x)))

    def chosen(self) -> list[tuple[float, Tensor]]:
        """Return as many of them as a strip has columns, evenly spread."""
        last = max(len(self._seen) - 1, 0)
        picked = torch.linspace(0, last, min(STRIP_COLUMNS, len(self._seen))).round().long().tolist()
        return [self._seen[i] for i in picked]


def draw(
    run: Run,
    sampler: Sampler,
    n: int,
    *,
    batch_size: int,
    seed: int,
    quiet: bool = False,
    trajectory: bool = False,
    first_index: int = 0,
    float32: bool = False,
    conditions: Mapping[str, Any] | None = None,
) -> Drawn:
    """Draw ``n`` samples of a seed in batches, with a progress bar over solver steps.

    Args:
        trajectory: keep the first samples' states on their way.
        first_index: number of the first sample.
        float32: with the network in float32, whatever the configuration says.
        conditions: what the samples are conditioned on, (n, *) each.
    """
    require_int("n", n, 1)
    require_int("batch_size", batch_size, 1)
    require_memory("num_samples", n, 2 * 4 * n * math.prod(run.shape), "draw fewer")  # z and x, on the CPU
    denoiser = run.float32 if float32 else run.denoiser_of(sampler)
    parts: list[Tensor] = []
    nfe: list[Tensor] = []
    strip = _Strip(denoiser.sde, strip_rows(run.shape))
    steps = sampler.num_steps if hasattr(sampler, "num_steps") else None
    total = steps * -(-n // batch_size) if steps else None
    seconds = 0.0
    with progress(total, "step", "sample", quiet) as bar:
        for first in range(0, n, batch_size):

            def see(step: int, t: Tensor, x: Tensor, first: int = first) -> None:
                bar.update(int(step > 0))
                if trajectory and first == 0:
                    strip.add(t, x)

            start = time.perf_counter()
            shape = (min(batch_size, n - first), *run.shape)
            part = {name: value[first : first + batch_size] for name, value in (conditions or {}).items()}
            result = sampler.draw(
                denoiser, shape, seed, first_index=first_index + first, device=run.device, callback=see, **part
            )
            parts.append(result.x.cpu())
            seconds += time.perf_counter() - start
            nfe.append(result.nfe_per_sample.cpu())
    mean = float(torch.cat(nfe).double().mean())
    z = torch.cat(parts)
    return Drawn(run.codec.decode(z), z, mean, seconds, strip.chosen(), sampler, seed, dict(conditions or {}))


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


def _class_words(classes: Tensor | None) -> str:
    """Return what the name of a file says of the classes of samples: each of a few, or their number."""
    if classes is None:
        return ""
    different = torch.unique(torch.as_tensor(classes)).tolist()
    return "_class" + ("-".join(map(str, different)) if len(different) <= 5 else f"es{len(different)}")


def save_samples(run: Run, drawn: Drawn, name: str) -> list[Path]:
    """Write samples to ``samples/`` of a run as arrays and as a figure, and if there is one, the strip of their way.

    The arrays are ``x``, the samples as the data are, ``z``, the same in model space, and the conditions by name.

    Args:
        name: of the sampler, as the files are to be called.
    """
    facts = provenance(
        run.device,
        seed=drawn.seed,
        checkpoint=str(run.checkpoint),
        step=run.step,
        sampler=repr(drawn.sampler),
        nfe=drawn.nfe,
        seconds=round(drawn.seconds, 3),
        dtype=run.dtype,
        config=chosen(run.config),
    )
    steps = f"_{drawn.sampler.num_steps}" if hasattr(drawn.sampler, "num_steps") else ""
    classes = _class_words(drawn.conditions.get("classes"))
    stem = run.workdir / "samples" / f"{name}{steps}{classes}_seed{drawn.seed}"
    written = [stem.with_name(f"{stem.name}{end}") for end in (".npz", ".json", ".png", "_trajectory.png")]
    save_arrays(written[0], {"x": drawn.x, "z": drawn.z, **drawn.conditions}, facts)
    show(run, written[2], drawn.z, run.data_beside)
    if drawn.strip:
        times, states = zip(*drawn.strip, strict=True)
        with beside(written[3]):
            save_strip(written[3], states, times)
    return [path for path in written if path.exists()]
