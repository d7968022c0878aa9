"""Time of a step around a trivial network, of every sampler, against the same step in another checkout.

    python benchmarks/step_cost.py --before=PATH

Both checkouts run in turns, each in a process of its own that lives as long as the comparison; a ratio is taken turn by
turn, and its median and its 5th and 95th percentiles are reported, of CPU time; beside it the ratio of the fastest
turns, which a busy machine disturbs least. A sampler that chooses its own steps is measured by
the evaluation. A multistep sampler written as a plug-in would be (`tests/dpmpp_2m.py`) is held against `ddim` of this
checkout. Writes `benchmarks/step_cost.json`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (64, 1, 28, 28)
NUM_STEPS = 50
PLUG_IN = "dpmpp_2m, a plug-in"


def network(x: Tensor, label: Tensor) -> Tensor:
    return x * 0.1


def timed(sampler: Any, seed: int) -> Callable[[], float]:
    """Return a function that draws once and returns seconds an evaluation of the network, for a start that is given."""
    import sde_diffusion as sd

    label = {"noise_label" if hasattr(sd, "NoiseLevel") else "conditioning": "discrete"}
    denoiser = sd.Denoiser(network, sd.DDPMChain.linear(), **label)
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))

    def run() -> float:
        noise = sd.NoiseStream(seed, range(SHAPE[0]))
        start = process_time()
        result = sampler.sample(denoiser, x, noise)
        return (process_time() - start) / result.nfe

    return run


def plug_in() -> Any:
    path = ROOT / "tests" / "dpmpp_2m.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # noqa: S101
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module.DPMSolverPP2M(num_steps=NUM_STEPS, grid="uniform")


def serve(seed: int, with_plug_in: bool) -> None:
    """Take turns: for each line that comes in, run every sampler once and print the times."""
    import samplers

    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    runs = {}
    for name in samplers.names():
        steps = {"num_steps": NUM_STEPS} if "num_steps" in samplers.config(name) else {}
        runs[name] = timed(samplers.build(name, **steps), seed)
    if with_plug_in:
        runs[PLUG_IN] = timed(plug_in(), seed)
    for _ in sys.stdin:
        print(json.dumps({name: min(run() for _ in range(2)) for name, run in runs.items()}), flush=True)


class Checkout:
    """A process that measures one checkout, turn by turn."""

    def __init__(self, path: Path, seed: int, *flags: str) -> None:
        command = [sys.executable, __file__, "--serve", f"--seed={seed}", *flags]
        environment = {**os.environ, "PYTHONPATH": str(path)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=path
        )

    def turn(self) -> dict[str, float]:
        assert self._process.stdin is not None  # noqa: S101
        assert self._process.stdout is not None  # noqa: S101
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description="Steps of this checkout against those of another.")
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plug_in", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.seed, options.plug_in)
        return
    if options.before is None or not (options.before / "samplers").is_dir():
        parser.error(f"--before={options.before}: expected a checkout with samplers/ in it")
    from pairing import in_turns, ratio, spread

    from sde_diffusion.files import provenance, write_json

    before, after = Checkout(options.before, options.seed), Checkout(ROOT, options.seed, "--plug_in")
    turns: dict[str, list[dict[str, float]]] = {"before": [], "after": []}

    def take(side: str, checkout: Checkout) -> float:
        turns[side].append(checkout.turn())
        return 0.0

    in_turns({"before": lambda: take("before", before), "after": lambda: take("after", after)}, options.repeats)
    before.close()
    after.close()
    kept = {side: found[2:] for side, found in turns.items()}
    times = {side: {name: [turn[name] for turn in found] for name in found[0]} for side, found in kept.items()}
    old, new = times["before"], times["after"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=options.before, capture_output=True, text=True)
    result = {
        "made_by": provenance(seed=options.seed, repeats=options.repeats, threads=1, before=commit.stdout.strip()),
        "shape": list(SHAPE),
        "num_steps": NUM_STEPS,
        "microseconds_an_evaluation": {
            side: {name: spread([1e6 * v for v in values]) for name, values in found.items()}
            for side, found in times.items()
        },
        "after_over_before": {name: ratio(new[name], old[name]) for name in old},
        "fastest_after_over_before": {name: min(new[name]) / min(old[name]) for name in old},
        "plug_in_over_ddim": ratio(new[PLUG_IN], new["ddim"]),
        "fastest_plug_in_over_ddim": min(new[PLUG_IN]) / min(new["ddim"]),
    }
    write_json(options.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
