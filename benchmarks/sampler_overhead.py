"""Time that a sampler adds to its network: our steps against those of `diffusers`, in one run.

    python benchmarks/sampler_overhead.py

A step is one call of a trivial network (its input times a constant) and what the sampler or scheduler does around it,
each with its own noise. Ours and theirs run in turns, so that a busy machine slows both; a ratio is taken turn by turn,
and its median and its 5th and 95th percentiles are reported. Also: what the noise costs as a share of a step of the
default network, and the peak memory of 10 and of 1000 steps, each in a process of its own (Linux). Writes
`benchmarks/sampler_overhead.json`. Needs `diffusers`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import pairing
import torch
from pairing import in_turns, number_of_turns, ratio, spread
from torch import Tensor

import samplers
import sde_diffusion as sd
from sde_diffusion.files import provenance, write_json
from sde_diffusion.networks import UNet
from sde_diffusion.sdes import DDPMChain

SHAPE = (64, 1, 28, 28)
NUM_STEPS = 50
PAIRS = {"ancestral": "DDPMScheduler", "ddim": "DDIMScheduler", "heun": "HeunDiscreteScheduler"}


def network(x: Tensor, label: Tensor) -> Tensor:
    return x * 0.1


def ours(name: str, seed: int, noise: sd.NoiseStream | Callable[..., Tensor] | None = None) -> Callable[[], float]:
    """Return a function that runs our sampler and returns seconds a step, noise of a fresh stream included."""
    sampler = samplers.build(name, num_steps=NUM_STEPS, grid="indices")
    denoiser = sd.Denoiser(network, DDPMChain.linear(), noise_label="discrete")
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))

    def run() -> float:
        start = perf_counter()
        sampler.sample(denoiser, x, noise or sd.NoiseStream(seed, range(SHAPE[0])))
        return (perf_counter() - start) / NUM_STEPS

    return run


def theirs(name: str, seed: int, noise: Tensor | None = None) -> Callable[[], float]:
    """Return a function that runs their scheduler as its documentation does and returns seconds a step.

    With ``noise`` their source of noise is replaced for the run, so that drawing it costs nothing.
    """
    import diffusers
    from diffusers.schedulers import scheduling_ddpm

    scheduler = getattr(diffusers, name)(clip_sample=False)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(SHAPE, generator=generator)
    drawn = vars(scheduling_ddpm)["randn_tensor"]

    def given(*args: Any, **kwargs: Any) -> Tensor | None:
        return noise

    def run() -> float:
        with mock.patch.object(scheduling_ddpm, "randn_tensor", drawn if noise is None else given):
            start, x = perf_counter(), first
            scheduler.set_timesteps(NUM_STEPS)
            for t in scheduler.timesteps:
                x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
            return (perf_counter() - start) / NUM_STEPS

    return run


def overhead(seed: int, repeats: int) -> dict[str, Any]:
    """Compare our steps with theirs; "given noise" leaves out what drawing noise costs, on both sides."""
    z = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    runs = {name: ours(name, seed) for name in PAIRS} | {name: theirs(name, seed) for name in PAIRS.values()}
    runs["ancestral, given noise"] = ours("ancestral", seed, lambda x, t, s: z)
    runs["DDPMScheduler, given noise"] = theirs("DDPMScheduler", seed, z)
    times = in_turns(runs, repeats)
    pairs = PAIRS | {"ancestral, given noise": "DDPMScheduler, given noise"}
    return {
        "microseconds_a_step": {name: spread([1e6 * v for v in values]) for name, values in times.items()},
        "ratio_to_counterpart": {a: ratio(times[a], times[b]) for a, b in pairs.items()},
        "ratio_to_DDPMScheduler": {a: ratio(times[a], times["DDPMScheduler"]) for a in pairs},
    }


def noise_share(seed: int, repeats: int) -> dict[str, Any]:
    """Compare noise with one step of the default network, at the batch sizes of a quick look and of the tour."""
    torch.manual_seed(seed)
    net = UNet(shape=(1, 8, 8), channels=24, num_blocks=(1,), attention=()).eval()
    denoiser = sd.Denoiser(net, sd.VPSDE())
    shares = {}
    for batch in (64, 450):
        x = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        stream, steps = sd.NoiseStream(seed, range(batch)), 8
        sampler = samplers.build("ancestral", num_steps=steps)

        def draw(x: Tensor = x, stream: sd.NoiseStream = stream, steps: int = steps) -> float:
            start = perf_counter()
            for _ in range(steps):
                stream(x)
            return (perf_counter() - start) / steps

        def step(x: Tensor = x, sampler: Any = sampler, batch: int = batch, steps: int = steps) -> float:
            start = perf_counter()
            sampler.sample(denoiser, x, sd.NoiseStream(seed, range(batch)))
            return (perf_counter() - start) / steps

        times = in_turns({"noise": draw, "step": step}, max(5, repeats // 4))
        shares[f"batch {batch}"] = {
            "noise_microseconds": spread([1e6 * v for v in times["noise"]]),
            "step_microseconds": spread([1e6 * v for v in times["step"]]),
            "share": ratio(times["noise"], times["step"]),
        }
    return shares


def peak_memory(num_steps: int) -> float:
    """Peak resident memory in MiB of a process of its own that takes ``num_steps`` steps of our ancestral sampler."""
    command = [sys.executable, __file__, "--only_memory_of", str(num_steps)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="Sampler overhead against diffusers.")
    parser.add_argument("--repeats", type=number_of_turns, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--only_memory_of", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.only_memory_of:
        sampler = samplers.build("ancestral", num_steps=options.only_memory_of)
        sampler.draw(sd.Denoiser(network, sd.VPSDE()), SHAPE, options.seed)
        print(pairing.peak_memory())
        return
    result = {
        "made_by": provenance(seed=options.seed, repeats=options.repeats, threads=torch.get_num_threads()),
        "shape": list(SHAPE),
        "num_steps": NUM_STEPS,
        **overhead(options.seed, options.repeats),
        "noise": noise_share(options.seed, options.repeats),
        "peak_memory_MiB": {f"{n} steps": peak_memory(n) for n in (10, 100, 1000)},
    }
    write_json(options.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
