"""The parts of `gpu.py`, each run by it as a process of its own, which writes a row as soon as it is measured."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import training_speed
from pairing import (
    OURS,
    THEIRS,
    has_diffusers,
    in_turns,
    load_ours,
    load_theirs,
    peak_memory,
    ratio,
    reset_peak,
    shape_of,
    spread,
)
from throughput import Draw, drawer, timed
from torch import Tensor

import sde_diffusion as sd

ROOT = Path(__file__).resolve().parents[1]
MODES = ("float32", "bfloat16", "bfloat16, compiled", "bfloat16, graphs")
COMPILATION, FIRST_STEP = 60.0, 0.5
"""Seconds that a compilation, and a step of all turns, are taken to need until one has been seen."""


@dataclass(frozen=True)
class Size:
    """What is measured.

    Attributes:
        networks: their names, and what is changed of them.
        batches, steps: of sampling.
        training: batch and steps of a turn.
        likelihood: images.
        repeats: turns.
    """

    networks: dict[str, dict[str, Any]]
    batches: tuple[int, ...]
    steps: tuple[int, ...]
    training: tuple[int, int]
    likelihood: int
    repeats: int


FULL = Size({"mnist": {}, "cifar10": {}}, (64, 1, 512), (10, 50), (128, 20), 64, 3)
TINY = {"sample_size": 8, "block_out_channels": (32, 32, 32)}
DRY = Size({"mnist": TINY}, (2,), (2, 3), (2, 2), 2, 2)

IMAGES, EVALUATIONS = "images_per_second", "evaluations_of_an_image_per_second"
Row = dict[str, Any]


class Until:
    """Measures what fits into the time that is left.

    Args:
        until: the end, by ``time.monotonic()``, which all processes of a machine share.
    """

    def __init__(self, until: float) -> None:
        self._until = until

    def measure(self, what: Row, needs: float, run: Callable[[], Row]) -> Row:
        """Return what was measured, why it was not, or how it failed."""
        left = self._until - time.monotonic()
        if needs > left:
            return {**what, "left_out": f"would take about {needs:.0f} s of the {max(left, 0.0):.0f} s left"}
        began = time.monotonic()
        try:
            found = run()
        except Exception as error:  # whatever a card or a compiler raises: the rest goes on
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        return {**what, **found, "seconds": time.monotonic() - began}


def host_syncs(run: Callable[[], object], device: str) -> int | None:
    """Return how often the host waited for the card during a run; None on the CPU."""
    if device == "cpu":
        return None
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in seen)


def beside_theirs(runs: dict[str, Callable[[], float]], images: float, repeats: int, per: str = IMAGES) -> Row:
    """Return the rates of both sides in turns, and how many times as fast ours is; ours alone if theirs is not there.

    Args:
        runs: by side, theirs first if it is there; each returns seconds.
        images: of one run.
    """
    times = in_turns(runs, repeats, warm_up=1)
    row: Row = {per: {side.split(", ")[0]: spread([images / s for s in t]) for side, t in times.items()}}
    if len(times) == 2:
        theirs, ours = times.values()
        row["over_theirs"] = ratio(theirs, ours)
    return row


def peer(mode: str) -> str:
    """Return their side in the precision of a mode of ours."""
    return ", ".join([THEIRS, mode.split(", ")[0]])


def sides_of(mode: str) -> tuple[str, ...]:
    ours = ", ".join([OURS, mode])
    return (peer(mode), ours) if has_diffusers() else (ours,)


class Costs:
    """What a measurement of sampling is taken to need, from those before it."""

    def __init__(self) -> None:
        self.compilation = COMPILATION
        self._step: dict[tuple[str, str], dict[int, float]] = {}  # seconds by batch, of network and precision

    def of(self, name: str, mode: str, batch: int, steps: int, compiles: bool) -> float:
        """Return seconds: along the straight line through two sizes of batches, or in proportion to one."""
        seen = self._step.get((name, mode.split(", ")[0]), {})
        low, high = min(seen, default=batch), max(seen, default=batch)
        a, b = seen.get(low, FIRST_STEP), seen.get(high, FIRST_STEP)
        slope = (b - a) / (high - low) if high > low else b / high
        return steps * (b + max(slope, 0.0) * max(batch - high, 0)) + compiles * self.compilation

    def learn(self, row: Row, compiles: bool) -> None:
        """Take note of what a measurement took, loading and all; of more steps it says more."""
        if IMAGES not in row:
            return
        name, mode, batch, steps, took = (row[key] for key in ("network", "ours", "batch", "steps", "seconds"))
        if compiles:
            self.compilation = max(took - self.of(name, mode, batch, steps, compiles=False), 1.0)
        elif mode in MODES[:2]:
            seen = self._step.setdefault((name, mode), {})
            seen[batch] = min(took / steps, seen.get(batch, took))


def sampling(size: Size, folder: Path, until: Until, options: argparse.Namespace) -> Iterator[Row]:
    """Draw batches: first what needs no compiler; one compilation serves all numbers of steps."""
    costs = Costs()
    order = itertools.product(MODES, size.batches, size.networks)
    for mode, batch, name in sorted(order, key=lambda cell: cell[0] not in MODES[:2]):  # a stable order
        shape = (batch, *shape_of(name, **size.networks[name]))
        draws: dict[str, Draw] = {}
        for steps in size.steps:
            what = {"part": "sampling", "network": name, "batch": batch, "steps": steps, "ours": mode}
            compiles = mode not in MODES[:2] and not draws
            needs = costs.of(name, mode, batch, steps, compiles)
            run = partial(draw_both, draws, sides_of(mode), folder / name, shape, steps, size.repeats, options)
            row = until.measure(what, needs, run)
            costs.learn(row, compiles)
            yield row


def draw_both(
    draws: dict[str, Draw],
    sides: tuple[str, ...],
    folder: Path,
    shape: tuple[int, ...],
    steps: int,
    repeats: int,
    options: argparse.Namespace,
) -> Row:
    """Draw by both sides in turns, then once more by ours to count syncs and memory; fills ``draws`` if it is empty."""
    if not draws:
        torch.compiler.reset()  # a shape of before would make the next one a dynamic one
        draws |= {side: drawer(side, folder, options) for side in sides}
    runs = {side: timed(partial(draw, shape, steps), options) for side, draw in draws.items()}
    row = beside_theirs(runs, shape[0], repeats)
    reset_peak(options.device)
    row["host_syncs"] = host_syncs(partial(draws[sides[-1]], shape, steps), options.device)
    return {**row, "peak_MiB": peak_memory(options.device)}


def training(size: Size, folder: Path, until: Until, options: argparse.Namespace) -> Iterator[Row]:
    """Train both sides by their own loops."""
    options.batch_size, options.steps = size.training
    needs = 10.0
    for mode, name in itertools.product(MODES[:2], size.networks):
        what = {"part": "training", "network": name, "batch": options.batch_size, "steps": options.steps, "ours": mode}
        shape = shape_of(name, **size.networks[name])
        row = until.measure(what, needs, partial(train_both, mode, name, folder, shape, size.repeats, options))
        needs = max(needs, row.get("seconds", 0.0))
        yield row


def train_both(
    mode: str, name: str, folder: Path, shape: tuple[int, ...], repeats: int, options: argparse.Namespace
) -> Row:
    sides = sides_of(mode)
    runs = {side: training_speed.prepare(side, name, folder / name, options, shape) for side in sides}
    row = beside_theirs(runs, 1.0, repeats)  # they return seconds an image
    return {**row, "host_syncs": host_syncs(runs[sides[-1]], options.device)}


def likelihood(size: Size, folder: Path, until: Until, options: argparse.Namespace) -> Iterator[Row]:
    """Score a batch; theirs is what a textbook evaluation costs: a forward pass, and another with a gradient."""
    needs = 10.0
    for name in size.networks:
        shape = (size.likelihood, *shape_of(name, **size.networks[name]))
        what = {"part": "likelihood", "network": name, "batch": size.likelihood, "ours": MODES[0]}
        row = until.measure(what, needs, partial(score_both, folder / name, shape, size.repeats, options))
        needs = max(needs, row.get("seconds", 0.0))
        yield row


def score_both(folder: Path, shape: tuple[int, ...], repeats: int, options: argparse.Namespace) -> Row:
    x = torch.randn(shape, device=options.device)
    denoiser, _ = load_ours(folder, f"{OURS}, {MODES[0]}", options)
    evaluations: list[int] = []

    def ours() -> None:
        found = sd.log_likelihood(denoiser, x, rtol=1e-2, atol=1e-2, check=0, max_steps=20)
        evaluations.append(int(found.nfe.max()))

    run = timed(ours, options)
    runs: dict[str, Callable[[], float]] = {OURS: lambda: run() / evaluations[-1]}
    if has_diffusers():
        runs = {THEIRS: timed(textbook(folder, x, options), options), **runs}
    row = beside_theirs(runs, shape[0], repeats, per=EVALUATIONS)
    return {**row, "evaluations": evaluations[-1], "host_syncs": host_syncs(ours, options.device)}


def textbook(folder: Path, x: Tensor, options: argparse.Namespace) -> Callable[[], object]:
    model = load_theirs(folder, options.device).eval()
    e, t = torch.randn_like(x), torch.full((len(x),), 500, device=x.device)

    def evaluate() -> object:
        with torch.no_grad():
            model(x, t)
        seen = x.detach().requires_grad_()
        return torch.autograd.grad(model(seen, t).sample, seen, e)

    return evaluate


def tests(size: Size, folder: Path, until: Until, options: argparse.Namespace) -> Iterator[Row]:
    """Run the tests marked `cuda`; each that fails is a row with its last line."""
    if importlib.util.find_spec("pytest") is None:
        yield {"part": "tests", "left_out": "pytest is not installed"}
        return
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.cuda" in path.read_text("utf-8")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-m",
        "cuda",
        "-rfEs",
        "--tb=line",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run([*command, *map(str, files)], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield {"part": "tests", "test": line.split(" - ")[0].split(" ", 1)[1], "error": line.partition(" - ")[2]}
    row: Row = {"part": "tests", "outcome": lines[-1].strip("= ") if lines else done.stderr[-300:]}
    skipped = [line for line in lines if line.startswith("SKIPPED")]
    yield {**row, **({"left_out": "; ".join(skipped)} if skipped else {})}


PARTS = {"tests": tests, "training": training, "likelihood": likelihood, "sampling": sampling}


def main() -> None:
    parser = argparse.ArgumentParser(description="One part of gpu.py.")
    parser.add_argument("--dry", action="store_true")
    for flag, kind in (("part", str), ("until", float), ("rows", Path), ("folder", Path), ("device", str)):
        parser.add_argument(f"--{flag}", type=kind)
    options = parser.parse_args()
    options.seed = 0
    if options.dry:  # all of the compiler but the making of code, which takes minutes
        real = torch.compile
        torch.compile = lambda net, **how: real(net, backend="aot_eager")  # type: ignore[assignment]
    # float32 is to mean float32, on both sides.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with open(options.rows, "a", encoding="utf-8") as file:
        rows = PARTS[options.part](DRY if options.dry else FULL, options.folder, Until(options.until), options)
        for row in rows:
            file.write(json.dumps(row) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
