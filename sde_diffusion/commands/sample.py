"""``sde-diffusion sample``."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import flags
from ml_collections import ConfigDict
from torch import Tensor

from samplers import Sampler
from sde_diffusion import config as configuration
from sde_diffusion.commands.flags import (
    CONFIG_FILE,
    define_pretrained_flag,
    define_run_flags,
    define_sampling_flags,
    pick_device,
    require_workdir,
    say,
)
from sde_diffusion.denoisers import AbstractDenoiser, Denoiser
from sde_diffusion.errors import InputError
from sde_diffusion.evaluation.pictures import save_grid, save_strip
from sde_diffusion.files import provenance, read_json, write_atomically
from sde_diffusion.networks.execution import precision_of
from sde_diffusion.ops import column
from sde_diffusion.training import checkpoints

STRIP_ROWS, STRIP_COLUMNS = 8, 12


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values)
    define_pretrained_flag(values)
    define_sampling_flags(values)
    flags.DEFINE_boolean("trajectory", False, "Also write a strip of the reverse process.", flag_values=values)


@dataclass(frozen=True)
class Run:
    """A trained run, ready to be sampled.

    Attributes:
        denoiser: around the averaged weights, run as the configuration says.
        sampled: the same with the configuration's thresholding around it: what is drawn from.
        float32: the first in float32, not compiled: what likelihoods and exact solutions are computed with.
        shape: shape of one sample.
        levels: number of grey levels of the data; None for vectors.
        checkpoint: folder of the weights.
        step: training step of the weights.
    """

    denoiser: Denoiser
    sampled: AbstractDenoiser
    float32: Denoiser
    shape: tuple[int, ...]
    levels: int | None
    checkpoint: Path
    step: int

    @property
    def dtype(self) -> str:
        """The precision in which the denoiser's network is run."""
        return precision_of(self.denoiser.net)


def load_run(workdir: Path, config: ConfigDict, device: torch.device) -> Run:
    """Load the newest checkpoint of a workdir, averaged weights.

    Raises:
        InputError: if there is none, or it does not fit the configuration.
    """
    folder = checkpoints.newest(workdir)
    if not (workdir / CONFIG_FILE).exists():
        raise InputError(
            f"workdir={str(workdir)!r}: has checkpoints but no {CONFIG_FILE}; restore it from the training"
        )
    data = read_json(workdir / CONFIG_FILE).get("data", {})
    shape = tuple(data.get("shape", ()))
    if not shape:
        raise InputError(f"{workdir / CONFIG_FILE}: expected data.shape, the shape of one sample")
    configuration.require_data_shape(config, shape)
    network = configuration.build_network(config, shape)
    step = checkpoints.load_ema(folder, network)
    network = network.to(device).eval().requires_grad_(False)
    executed, exact = (configuration.execute_network(config, network, exact=exact) for exact in (False, True))
    denoiser, float32 = (configuration.build_denoiser(config, how) for how in (executed, exact))
    sampled = configuration.threshold(config, denoiser)
    return Run(denoiser, sampled, float32, shape, data.get("levels"), folder, step)


@dataclass(frozen=True)
class Drawn:
    """Samples on the CPU, counted evaluations of a sample, seconds, the strip's times and states."""

    x: Tensor
    nfe: float
    seconds: float
    strip: list[tuple[float, Tensor]]


def draw(
    sampler: Sampler,
    run: Run,
    device: torch.device,
    num_samples: int,
    batch_size: int,
    seed: int,
    quiet: bool,
    with_strip: bool = False,
    first_index: int = 0,
) -> Drawn:
    """Draw ``num_samples`` samples of a seed in batches, with a progress bar over solver steps.

    Args:
        with_strip: keep the first samples' states on their way.
        first_index: number of the first sample.
    """
    from tqdm import tqdm

    sde = run.denoiser.sde
    parts: list[Tensor] = []
    nfe: list[Tensor] = []
    strip: list[tuple[float, Tensor]] = []
    steps = getattr(sampler, "num_steps", None)
    batches = -(-num_samples // batch_size)
    total = steps * batches if steps else None
    seconds = 0.0
    with tqdm(total=total, unit="step", disable=quiet, desc="sample", leave=False) as progress:
        for first in range(0, num_samples, batch_size):

            def see(step: int, t: Tensor, x: Tensor, first: int = first) -> None:
                progress.update(int(step > 0))
                if with_strip and first == 0:
                    now = t.reshape(-1)[:STRIP_ROWS].double()
                    scale = (sde.alpha(now) ** 2 + sde.sigma(now) ** 2).rsqrt()  # unit size at all noise levels
                    shown = x[:STRIP_ROWS].double().cpu() * column(scale.cpu(), x)
                    strip.append((float(now[0]), shown))

            start = time.perf_counter()
            shape = (min(batch_size, num_samples - first), *run.shape)
            result = sampler.draw(
                run.sampled, shape, seed, first_index=first_index + first, device=device, callback=see
            )
            parts.append(result.x.cpu())
            seconds += time.perf_counter() - start
            nfe.append(result.nfe_per_sample.cpu())
    chosen = torch.linspace(0, max(len(strip) - 1, 0), min(STRIP_COLUMNS, len(strip))).round().long().tolist()
    return Drawn(torch.cat(parts), float(torch.cat(nfe).double().mean()), seconds, [strip[i] for i in chosen])


def save_samples(path: Path, x: Tensor, facts: dict[str, Any]) -> None:
    """Write samples and their provenance as ``.npz``: arrays ``x`` and ``provenance`` (a JSON text)."""
    write_atomically(path, lambda p: np.savez_compressed(p, x=x.numpy(), provenance=json.dumps(facts)))


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Draw samples and write the grid, the arrays and, if asked for, the strip."""
    workdir, device = require_workdir(values), pick_device(values.device)
    sampler = configuration.build_sampler(config, values.sampler, values.steps)
    name = values.sampler or config.sampler.name
    loaded = load_run(workdir, config, device)
    drawn = draw(
        sampler, loaded, device, values.num_samples, values.batch_size, config.seed, values.quiet, values.trajectory
    )
    facts = provenance(
        device,
        seed=config.seed,
        checkpoint=str(loaded.checkpoint),
        step=loaded.step,
        sampler=repr(sampler),
        nfe=drawn.nfe,
        seconds=round(drawn.seconds, 3),
        dtype=loaded.dtype,
        config=config.to_dict(),
    )
    steps = f"_{sampler.num_steps}" if hasattr(sampler, "num_steps") else ""
    stem = workdir / "samples" / f"{name}{steps}_seed{config.seed}"
    save_samples(stem.with_suffix(".npz"), drawn.x, facts)
    save_grid(stem.with_suffix(".png"), drawn.x)
    say(f"{len(drawn.x)} samples with {sampler}\nNFE {drawn.nfe:g}, {drawn.seconds:.1f} s", values.quiet)
    written = [".npz", ".png"]
    if values.trajectory:
        times, states = zip(*drawn.strip, strict=True)
        save_strip(stem.with_name(f"{stem.name}_trajectory.png"), states, times)
        written.append("_trajectory.png")
    say(f"wrote {', '.join(stem.name + end for end in written)} in {stem.parent}", values.quiet)
