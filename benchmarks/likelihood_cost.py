"""What a likelihood costs: the textbook method against ours, on the same networks, images and probes.

    python benchmarks/likelihood_cost.py --workdir=runs/tour --workdir=runs/fashion

The textbook method (Song et al. 2021, arXiv:2011.13456, Appendix D.4) is SciPy's RK45 at rtol = atol = 1e-5 on the
host: the whole batch is one system in t; an evaluation takes two forward passes (drift; divergence) and one backward
pass. Ours is `sd.log_likelihood`: each sample its own steps in the angle atan(σ/α), one forward and one backward pass.

Each run is a process of its own, so that its peak memory is its own, and methods take turns. The error is that of the
mean bits/dim against a float64 solve at tolerance 1e-8 with the same probes. For "equal accuracy" a method is charged
its cheapest tolerance from which on the error stays within 1e-3 bits/dim. Ours also runs under bfloat16 autocast, to
say what that does. Writes `benchmarks/likelihood_cost.json` and `.png`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion import config as configuration
from sde_diffusion.files import provenance, write_atomically, write_json
from sde_diffusion.ops import expand
from sde_diffusion.runs.open import load_run
from sde_diffusion.stored_config import load_config

TOLERANCES = {
    "textbook": (1e-2, 1e-3, 1e-4, 1e-5),
    "ours": (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 1e-5),
    "ours, bfloat16": (1e-2, 3e-3),  # with --bfloat16: without hardware for it, a hundred times slower
}
PUBLISHED, ACCURACY, T_MIN = 1e-5, 1e-3, 1e-5


def textbook(denoiser: sd.Denoiser, x: Tensor, e: Tensor, tolerance: float) -> dict[str, Any]:
    """Log-likelihood by one SciPy system over the batch, as the published code does it."""
    sde, shape, passes = denoiser.sde, x.shape, {"forward": 0, "backward": 0}

    def drift(x: Tensor, t: Tensor) -> Tensor:
        passes["forward"] += 1
        f, g = sde.coefficients(t)
        return expand(f, x) * x - 0.5 * expand(g**2, x) * denoiser(x, t).score

    def right_side(t: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(y[: x.numel()]).to(x.dtype).reshape(shape)
        time = torch.full((len(x),), t, dtype=torch.float64)
        with torch.no_grad():
            slope = drift(state, time)
        state.requires_grad_()
        with torch.enable_grad():
            (product,) = torch.autograd.grad(drift(state, time), state, e)
        passes["backward"] += 1
        divergence = (product * e).flatten(1).sum(dim=1)
        return np.concatenate([slope.numpy().reshape(-1), divergence.numpy()]).astype(np.float64)

    start = np.concatenate([x.numpy().reshape(-1), np.zeros(len(x))])
    solution = solve_ivp(right_side, (T_MIN, sde.T), start, rtol=tolerance, atol=tolerance, method="RK45")
    end = torch.from_numpy(solution.y[:, -1])
    log_prob = sde.prior_logp(end[: x.numel()].reshape(shape)) + end[x.numel() :]
    return {"log_prob": log_prob.tolist(), "evaluations": solution.nfev, **passes}


class BFloat16(nn.Module):
    """A network under bfloat16 autocast."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            out: Tensor = self.net(x, label)
        return out.to(x.dtype)


def ours(denoiser: sd.Denoiser, x: Tensor, tolerance: float) -> dict[str, Any]:
    r = sd.log_likelihood(denoiser, x, rtol=tolerance, atol=tolerance, t_min=T_MIN, check=0)
    evaluations = int(r.nfe.max())
    return {
        "log_prob": r.log_prob.tolist(),
        "evaluations": evaluations,
        "evaluations_of_a_sample": float(r.nfe.double().mean()),
        "forward": evaluations,
        "backward": evaluations,
    }


def one(workdir: Path, method: str, tolerance: float, num_images: int) -> dict[str, Any]:
    """Run one method once in this process."""
    config = load_config(workdir)
    run = load_run(workdir, config, torch.device("cpu"))
    dataset = configuration.build_dataset(config)
    k = dataset.test[:num_images]
    x, weight = run.codec.density.encode(k, sd.NoiseStream(1, range(num_images)))
    e = torch.where(sd.NoiseStream(0, range(num_images))(x) < 0.0, -1.0, 1.0)  # log_likelihood's probes under seed 0
    denoiser = run.float32
    if method == "reference":
        denoiser, x = configuration.build_denoiser(config, copy.deepcopy(denoiser.net).double()), x.double()
    elif method.endswith("bfloat16"):
        denoiser = configuration.build_denoiser(config, BFloat16(denoiser.net))
    ours(denoiser, x[:2], 0.1)  # warms up: threads, memory, the choice of kernels
    start = perf_counter()
    result = textbook(denoiser, x, e, tolerance) if method == "textbook" else ours(denoiser, x, tolerance)
    seconds = perf_counter() - start
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    memory = int(status.split("VmHWM:")[1].split()[0]) / 1024
    bits = sd.bits_per_dim(torch.tensor(result.pop("log_prob")) + weight, dataset.shape, levels=1, scale=1.0)
    return {**result, "seconds": seconds, "peak_memory_MiB": memory, "bits_per_dim": bits.tolist()}


def measure(workdir: Path, repeats: int, num_images: int, bfloat16: bool) -> dict[str, Any]:
    """Run all methods and tolerances in turns."""

    def child(method: str, tolerance: float) -> dict[str, Any]:
        command = [sys.executable, __file__, f"--workdir={workdir}", "--only", method, str(tolerance)]
        command += ["--num_images", str(num_images)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        print(f"{workdir.name}: {method} {tolerance:g}: {found['evaluations']} evaluations, {found['seconds']:.1f} s")
        return found

    reference = child("reference", 1e-8)
    exact = statistics.fmean(reference["bits_per_dim"])
    methods = [method for method in TOLERANCES if bfloat16 or not method.endswith("bfloat16")]
    plan = [(method, tolerance) for method in methods for tolerance in TOLERANCES[method]]
    times: dict[tuple[str, float], list[float]] = {key: [] for key in plan}
    rows = {}
    for _ in range(repeats):
        for key in plan:
            found = child(*key)
            times[key].append(found.pop("seconds"))
            rows[key] = found
    table = []
    for key, row in rows.items():
        errors = np.array(row.pop("bits_per_dim")) - np.array(reference["bits_per_dim"])
        accuracy = {"mean_error": float(errors.mean()), "rms_error": float(np.sqrt((errors**2).mean()))}
        table.append({"method": key[0], "tolerance": key[1], "seconds": times[key], **accuracy, **row})

    def cheapest(method: str) -> float:
        """The largest tolerance from which on the error of the mean stays within the accuracy."""
        good = [row["tolerance"] for row in table if row["method"] == method]
        bad = [r["tolerance"] for r in table if r["method"] == method and not abs(r["mean_error"]) <= ACCURACY]
        below = [tolerance for tolerance in good if not bad or tolerance < min(bad)]
        return max(below) if below else math.nan

    equal = {method: cheapest(method) for method in ("textbook", "ours")}
    ratios = {}
    for name, tolerance in (("published", PUBLISHED), ("equal_accuracy", equal["textbook"])):
        if not math.isnan(tolerance + equal["ours"]):
            pairs = zip(times["ours", equal["ours"]], times["textbook", tolerance], strict=True)
            values = [a / b for a, b in pairs]
            ratios[name] = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {
        "reference": {"bits_per_dim": exact, "evaluations": reference["evaluations"]},
        "rows": table,
        "tolerance_for_accuracy": equal,
        "ours_over_textbook": ratios,
    }


def draw(path: Path, results: dict[str, Any]) -> None:
    """Plot cost against error."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(5.4 * len(results), 4.2), squeeze=False)
    for axis, (name, result) in zip(axes[0], results.items(), strict=True):
        for method in TOLERANCES:
            rows = [row for row in result["rows"] if row["method"] == method]
            if not rows:
                continue
            error, cost = [row["rms_error"] for row in rows], [statistics.median(row["seconds"]) for row in rows]
            axis.plot(error, cost, marker="o", markersize=4, label=method)
            for x, y, row in zip(error, cost, rows, strict=True):
                axis.annotate(f"{row['tolerance']:.0e}", (x, y), fontsize=7, textcoords="offset points", xytext=(4, 4))
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("root mean square error of an image, bits/dim")
        axis.set_ylabel("seconds")
        axis.set_title(name)
        axis.grid(alpha=0.3, which="both")
        axis.legend()
    figure.tight_layout()
    write_atomically(path, lambda p: figure.savefig(p, dpi=110))


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of a likelihood against its error.")
    parser.add_argument("--workdir", type=Path, action="append", required=True, help="a trained run on a VP SDE")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num_images", type=int, default=16)
    parser.add_argument("--bfloat16", action="store_true", help="also under bfloat16 autocast")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        print(json.dumps(one(options.workdir[0], options.only[0], float(options.only[1]), options.num_images)))
        return
    arguments = options.repeats, options.num_images, options.bfloat16
    results = {workdir.name: measure(workdir, *arguments) for workdir in options.workdir}
    facts = provenance(seed=0, repeats=options.repeats, num_images=options.num_images, threads=1)
    write_json(options.output, {"made_by": facts, "networks": results})
    draw(options.output.with_suffix(".png"), results)
    for name, result in results.items():
        print(
            name, json.dumps({key: result[key] for key in ("tolerance_for_accuracy", "ours_over_textbook")}, indent=2)
        )


if __name__ == "__main__":
    main()
