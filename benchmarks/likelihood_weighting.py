"""Training for likelihood: the likelihood weighting with importance-sampled times against DDPM's simple loss.

    python benchmarks/likelihood_weighting.py

Trains the built-in network on digits with each, for the same number of steps on the same batches, and scores all
held-out digits: the continuous bound on their grey levels, the same bound on the dequantised density from t_min = 1e-5,
and the ODE's likelihood. Both networks are scored with the same noises, so the difference is taken image by image; its
standard error is over images, and each training seed has its own lines. Writes `benchmarks/likelihood_weighting.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion import config as configuration
from sde_diffusion.evaluation.scoring import bound_start
from sde_diffusion.files import provenance, write_json
from sde_diffusion.likelihood import mean_and_error
from sde_diffusion.runs.fitting import train_run
from sde_diffusion.runs.open import load_run

LOSSES = {
    "simple": ("stratified", "simple", 1e-5),
    "likelihood": ("importance", "likelihood", 1e-5),
    "likelihood, from half a cell": ("importance", "likelihood", 0.0),  # where the bound on grey levels starts
}
CPU = torch.device("cpu")


def score(workdir: Path, loss: str, seed: int, num_steps: int) -> dict[str, Tensor]:
    """Train one network and return bits/dim of each held-out digit, by figure."""
    config = configuration.default_config()
    config.seed, config.training.num_steps = seed, num_steps
    times, weighting, t_min = LOSSES[loss]
    dataset = configuration.build_dataset(config)
    start = bound_start(configuration.build_sde(config), configuration.build_codec(config, dataset).cell)
    config.objective.denoising.times.name, config.objective.denoising.weighting.name = times, weighting
    config.objective.denoising.times[times].t_min = t_min or start
    train_run(workdir, config, CPU, quiet=True)
    run = load_run(workdir, config, CPU)
    k, denoiser, codec = dataset.test, run.float32, run.codec.density
    unit = 1.0 / (math.prod(dataset.shape) * math.log(2.0))
    x, weight = codec.encode(k, sd.NoiseStream(1, range(len(k))))

    def bound(x0: Tensor, t_min: float, cell: float | None) -> Tensor:
        with torch.no_grad():
            noise = sd.NoiseStream(2, range(len(x0)))
            return sd.continuous_bound(denoiser, x0, noise, draws=64, t_min=t_min, cell=cell).total

    ode = sd.log_likelihood(denoiser, x, rtol=1e-3, atol=1e-3, check=0).log_prob
    return {
        "bound on grey levels": bound(codec.encode(k)[0], start, codec.cell) * unit,
        "bound on the density": (bound(x, 1e-5, None) - weight) * unit,
        "ODE": -(ode + weight) * unit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Likelihood weighting against the simple loss.")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--num_steps", type=int, default=1400)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    by_seed: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        found = {}
        for loss in LOSSES:
            with tempfile.TemporaryDirectory() as folder:
                found[loss] = score(Path(folder), loss, seed, options.num_steps)
        rows = {}
        for figure in found["simple"]:
            rows[figure] = {loss: mean_and_error(values[figure]) for loss, values in found.items()}
            for loss in list(LOSSES)[1:]:
                gain = found[loss][figure] - found["simple"][figure]
                rows[figure][f"{loss}, minus simple"] = mean_and_error(gain)
        by_seed.append(rows)
        print(json.dumps(rows, indent=2))
    facts = provenance(
        seeds=options.seeds, num_steps=options.num_steps, threads=1, unit="bits/dim, mean and standard error"
    )
    write_json(options.output, {"made_by": facts, "by_seed": by_seed})


if __name__ == "__main__":
    main()
