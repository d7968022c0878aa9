"""Cold start: whole processes from their start to their end, ours against `diffusers` and against `import torch`.

    python benchmarks/cold_start.py

Drawn are 16 pictures in 10 steps by the 1.1M-parameter network on 28×28: `sde-diffusion sample` from a workdir against
`DDPMPipeline.from_pretrained` of the same weights, which writes the pictures too. Each runs in turns with the others;
one turn warms the file cache up. Writes `benchmarks/cold_start.json`. Needs `diffusers`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from pairing import OURS, in_turns, number_of_turns, ratio, save_both, spread

from sde_diffusion.files import provenance, write_json

PIPELINE = """
import sys, torch
from diffusers import DDPMPipeline
pipeline = DDPMPipeline.from_pretrained(sys.argv[1]).to(sys.argv[2])
generator = torch.Generator().manual_seed(0)
for i, picture in enumerate(pipeline(batch_size=16, num_inference_steps=10, generator=generator).images):
    picture.save(f"{sys.argv[1]}/{i}.png")
"""
SAMPLE = ["-m", "sde_diffusion", "sample", "--sampler=ancestral", "--steps=10", "--num_samples=16", "--quiet"]
SAMPLE += ["--overwrite"]  # else nothing is drawn again
PAIRS = {"import sde_diffusion": "import torch", "sde-diffusion sample": "DDPMPipeline"}


def process(*arguments: str) -> Callable[[], float]:
    """Return a function that runs a Python process and returns its seconds."""

    def run() -> float:
        start = perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return perf_counter() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Cold start against diffusers.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=number_of_turns, default=10)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_both("mnist", folder, seed=0)
        runs = {
            "import torch": process("-c", "import torch"),
            "import sde_diffusion": process("-c", "import sde_diffusion"),
            "DDPMPipeline": process("-c", PIPELINE, str(folder), options.device),
            "sde-diffusion sample": process(*SAMPLE, f"--workdir={folder / OURS}", f"--device={options.device}"),
        }
        times = in_turns(runs, options.repeats, warm_up=1)
    result = {
        "made_by": provenance(options.device, seed=0, repeats=options.repeats),
        "seconds": {name: spread(values) for name, values in times.items()},
        "ratio": {f"{a} / {b}": ratio(times[a], times[b]) for a, b in PAIRS.items()},
    }
    write_json(options.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
