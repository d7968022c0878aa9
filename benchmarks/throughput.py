"""Sampling throughput and peak memory: ours against `diffusers`, the same weights, in one run.

    python benchmarks/throughput.py                      # bfloat16 where it pays
    python benchmarks/throughput.py --how=float32 --how=bfloat16,compiled --batch_size=64
    python benchmarks/throughput.py --threads=1 --cpu_time      # on a busy machine

Theirs is `UNet2DModel` and `DDPMScheduler` in the loop of their documentation, in float32; ours the same chain and
variance by the ancestral sampler. Images per second are of `--steps` steps; the ratio is taken turn by turn, its median
and its 5th and 95th percentiles reported. Writes `benchmarks/throughput.json`. Needs `diffusers`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from pairing import THEIRS, as_theirs, clock, compare, load_ours, load_theirs, parser, shape_of, synchronise

import samplers


def prepare(side: str, name: str, folder: Path, options: argparse.Namespace) -> Callable[[], float]:
    """Return a function that draws one batch and returns seconds an image."""
    shape = (options.batch_size, *shape_of(name))
    draw = drawer(side, folder, options)
    run = timed(lambda: draw(shape, options.steps), options)
    return lambda: run() / options.batch_size


Draw = Callable[[tuple[int, ...], int], object]
"""``draw(shape, steps)`` draws a batch."""


def drawer(side: str, folder: Path, options: argparse.Namespace) -> Draw:
    return (theirs if side.startswith(THEIRS) else ours)(side, folder, options)


def timed(draw: Callable[[], object], options: argparse.Namespace) -> Callable[[], float]:
    """Return a function that runs ``draw`` and returns its seconds."""
    now = clock(options)

    def run() -> float:
        synchronise(options.device)
        start = now()
        draw()
        synchronise(options.device)
        return now() - start

    return run


def ours(side: str, folder: Path, options: argparse.Namespace) -> Draw:
    denoiser, _ = load_ours(folder, side, options)
    return lambda shape, steps: samplers.build("ancestral", num_steps=steps, grid="indices").draw(
        denoiser, shape, options.seed
    )


def theirs(side: str, folder: Path, options: argparse.Namespace) -> Draw:
    import diffusers

    model = load_theirs(folder, options.device).eval()
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler")

    def draw(shape: tuple[int, ...], steps: int) -> torch.Tensor:
        scheduler.set_timesteps(steps)
        x = torch.randn(shape, device=options.device)
        for t in scheduler.timesteps:
            with torch.no_grad(), as_theirs(side, options.device):
                noise = model(x, t).sample
            x = scheduler.step(noise, t, x).prev_sample
        return x

    return draw


if __name__ == "__main__":
    compare(prepare, parser("Sampling throughput against diffusers.").parse_args())
