"""Training images per second and peak memory: ours against the unconditional example of `diffusers`, in one run.

    python benchmarks/training_speed.py

Theirs is the loop of their documentation's example with its averaged weights, in float32: `add_noise`, mean squared
error of the noise, AdamW, clipping, a schedule of the rate, `EMAModel`, batches from a `DataLoader` (`accelerate` only
moves tensors there). Ours is `sde_diffusion.training.loop.train` with the same loss. Both start from the same weights
and train on the same random pictures, already in memory. Time is taken from the loading of the first batch to that of
the last; the checkpoint that ours writes at its end is left out. Writes `benchmarks/training_speed.json`.
Needs `diffusers`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
import torch.nn.functional as F
from pairing import THEIRS, as_theirs, clock, compare, load_ours, load_theirs, parser, shape_of, synchronise
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.codecs.grey_levels import GreyLevels
from sde_diffusion.data import Dataset, Examples
from sde_diffusion.runs.batches import TrainingBatches
from sde_diffusion.training import checkpoints
from sde_diffusion.training.checkpoints import TrainingState
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.loop import TrainingOptions, make_optimizer, train

LONG = 10_000
"""Steps of the schedule of the rate, whose few first ones are run."""


def prepare(
    side: str, name: str, folder: Path, options: argparse.Namespace, shape: tuple[int, ...] | None = None
) -> Callable[[], float]:
    """Return a function that trains for `--steps` steps and returns seconds an image."""
    generator = torch.Generator().manual_seed(options.seed)
    count = options.batch_size * (options.steps + 1)
    data = torch.randint(256, (count, *(shape or shape_of(name))), dtype=torch.uint8, generator=generator)
    times: list[float] = []
    now = clock(options)

    def stamp() -> None:
        synchronise(options.device)
        times.append(now())

    go = (theirs if side.startswith(THEIRS) else ours)(side, data, stamp, folder, options)

    def run() -> float:
        times.clear()
        go()
        return (times[options.steps] - times[0]) / (options.steps * options.batch_size)

    return run


def ours(
    side: str, data: Tensor, stamp: Callable[[], None], folder: Path, options: argparse.Namespace
) -> Callable[[], None]:
    denoiser, network = load_ours(folder, side, options, training=True)
    network.train().requires_grad_(True)
    settings = TrainingOptions(batch_size=options.batch_size, num_steps=LONG, learning_rate=1e-4, log_every=LONG)
    state = TrainingState(network, EMA(network), make_optimizer(network, settings))
    objective = sd.DenoisingScoreMatching("discrete", "simple")
    load = TrainingBatches(Dataset("random", data, data, 256), GreyLevels(256), settings, options.seed)

    def batch(step: int, noise: sd.NoiseStream) -> Examples:
        stamp()
        return load(step, noise)

    def go() -> None:
        state.step = 0
        few = TrainingOptions(**{**vars(settings), "num_steps": options.steps + 1})
        with TemporaryDirectory() as workdir, mock.patch.object(checkpoints, "save"):
            train(Path(workdir), denoiser, state, objective, batch, few, options.seed, {}, quiet=True)

    return go


def theirs(
    side: str, data: Tensor, stamp: Callable[[], None], folder: Path, options: argparse.Namespace
) -> Callable[[], None]:
    import diffusers
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    model = load_theirs(folder, options.device).train()
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=LONG)
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    average.to(options.device)
    pictures = data / 127.5 - 1.0
    loader = torch.utils.data.DataLoader(pictures, batch_size=options.batch_size, shuffle=True)  # type: ignore[var-annotated]

    def stamped() -> Iterator[Tensor]:
        batches = iter(loader)
        while True:
            stamp()
            batch = next(batches, None)
            if batch is None:
                return
            yield batch.to(options.device)

    def go() -> None:
        for clean in stamped():
            noise = torch.randn_like(clean)
            t = torch.randint(0, scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
            noisy = scheduler.add_noise(clean, noise, t)
            with as_theirs(side, options.device):
                loss = F.mse_loss(model(noisy, t).sample, noise)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            average.step(model.parameters())
            loss.detach().item()  # what their progress bar shows

    return go


if __name__ == "__main__":
    compare(prepare, parser("Training speed against diffusers.").parse_args())
