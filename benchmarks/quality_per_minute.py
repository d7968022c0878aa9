"""Quality for a budget of training time: ours against the unconditional example of `diffusers`, on Fashion-MNIST.

    python benchmarks/quality_per_minute.py --folder=runs/quality

Both train for as many minutes on all cores, one after the other, from random weights; a pilot tells how many steps fit.
Theirs is the loop of their documentation's example around a UNet2DModel of 1.11M parameters (channels 32, 64, 64), with
well-chosen settings: batch 64, AdamW at 1e-3 with warm-up and cosine decay, clipping at 1, averaged weights with decay
0.9995, no flips. Ours is `sde-diffusion train` with `configs/fashion_mnist.py` and the same channels; two more
blocks at 7×7 make it 1.19M parameters. It is swept by `sde-diffusion benchmark`, theirs drawn by their own schedulers,
whose clipping and spacing of times it needs; at 20 and at 50 evaluations the best of each counts.

What is finished in the folder is not done again. Writes `benchmarks/quality_per_minute.json`. Needs `diffusers`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from pairing import NETWORKS, OURS, THEIRS

from sde_diffusion.codecs import codec_for
from sde_diffusion.commands.main import main as sde_diffusion
from sde_diffusion.data import DATASETS, train_batch
from sde_diffusion.evaluation.metrics import Extractor, join, measure, reference_features
from sde_diffusion.evaluation.sweep import RECORD, Row, read_rows
from sde_diffusion.files import provenance, write_json
from sde_diffusion.reading import read_json

CONFIG = Path(__file__).parent.parent / "configs/fashion_mnist.py"
BUDGETS = (20, 50)
SWEEPS = {"heun": "10,25", "ddim": "20,50", "ancestral": "20,50"}
"""Our samplers and their numbers of steps; n steps of Heun's method are 2n − 1 evaluations."""
SCHEDULERS = ("DDIMScheduler", "DPMSolverMultistepScheduler", "DDPMScheduler")
BATCH = 50
METRIC = "FD-fashion"


def theirs(folder: Path, num_steps: int, seed: int) -> None:
    """Train with their loop and write a pipeline into ``folder``."""
    import diffusers
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(seed)
    pictures = DATASETS.build("fashion_mnist").train
    model = diffusers.UNet2DModel(**NETWORKS["mnist"])
    scheduler = diffusers.DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.95, 0.999), weight_decay=1e-6)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=100, num_training_steps=num_steps)
    average = EMAModel(model.parameters(), decay=0.9995, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    for step in range(num_steps):
        clean = train_batch(pictures, 64, seed, step)[0] / 127.5 - 1.0
        noise = torch.randn_like(clean)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (len(clean),))
        loss = F.mse_loss(model(scheduler.add_noise(clean, noise, t), t).sample, noise)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(model.parameters())
    average.copy_to(model.parameters())
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(folder)


def ours(folder: Path, num_steps: int, seed: int) -> None:
    """Train with our command; ``folder`` is the workdir."""
    flags = [f"--workdir={folder}", f"--config={CONFIG}", f"--config.seed={seed}", "--quiet"]
    changes = ("network.unet.num_blocks=(1, 1, 3)", f"training.num_steps={num_steps}")
    run("train", *flags, *(f"--config.{change}" for change in changes))


def run(*command: str) -> None:
    code = sde_diffusion(command)
    if code:
        raise SystemExit(code)


def train(side: Callable[[Path, int, int], None], folder: Path, minutes: float, seed: int) -> dict[str, float]:
    """Train one side for about ``minutes``; returns its steps and the time that it took."""

    def seconds(num_steps: int, where: Path) -> float:
        start = perf_counter()
        side(where, num_steps, seed)
        return perf_counter() - start

    with TemporaryDirectory() as temporary:
        short, long = (seconds(n, Path(temporary) / str(n)) for n in (20, 140))
    num_steps = int((60 * minutes - short) / (long - short) * 120)
    return {"steps": num_steps, "minutes": seconds(num_steps, folder) / 60}


def sweep(workdir: Path, num_samples: int) -> list[Row]:
    """Sweep our samplers and return the rows."""
    for sampler, steps in SWEEPS.items():
        what = f"--num_samples={num_samples}", f"--samplers={sampler}", f"--steps={steps}"
        run("benchmark", f"--workdir={workdir}", *what)
    return read_rows(workdir / RECORD)


def draw_theirs(folder: Path, num_samples: int, seed: int) -> list[Row]:
    """Draw with their schedulers, as their pipeline does, and return rows like ours."""
    import diffusers

    record = folder / "rows.json"
    rows: list[Row] = read_json(record) if record.exists() else []
    dataset = DATASETS.build("fashion_mnist")
    codec = codec_for(dataset)
    extractor = Extractor("fashion")
    reference = reference_features(extractor, dataset.test)
    model = diffusers.UNet2DModel.from_pretrained(folder / "unet").eval()
    for name in SCHEDULERS:
        for budget in BUDGETS:
            if any((row["sampler"], row["value"]) == (name, budget) for row in rows):
                continue
            scheduler = getattr(diffusers, name).from_pretrained(folder / "scheduler")
            noise = torch.Generator().manual_seed(seed)
            parts = []
            for first in range(0, num_samples, BATCH):
                scheduler.set_timesteps(budget)
                x = torch.randn(min(BATCH, num_samples - first), 1, 28, 28, generator=noise)
                for t in scheduler.timesteps:
                    with torch.no_grad():
                        x = scheduler.step(model(x, t).sample, t, x).prev_sample
                parts.append(extractor(codec.decode(x)))
            found = measure(join(parts), reference, METRIC)
            rows.append({"sampler": name, "value": budget, "nfe": budget, "metrics": found})
            write_json(record, rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality per minute of training against diffusers.")
    parser.add_argument("--folder", type=Path, required=True, help="keeps the two networks and their sweeps")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--num_samples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()

    result: dict[str, Any] = {"made_by": provenance(seed=options.seed, threads=torch.get_num_threads())}
    record = options.folder / "training.json"
    trained = read_json(record) if record.exists() else {}
    folders = {THEIRS: options.folder / "pipeline", OURS: options.folder / OURS}
    for name, side in ((THEIRS, theirs), (OURS, ours)):
        if name not in trained:
            trained[name] = train(side, folders[name], options.minutes, options.seed)
            write_json(record, trained)

    best: dict[str, list[Row]] = {}
    found = {
        THEIRS: draw_theirs(folders[THEIRS], options.num_samples, options.seed),
        OURS: sweep(folders[OURS], options.num_samples),
    }
    for name, rows in found.items():
        best[name] = [
            min((row for row in rows if row["nfe"] <= budget), key=lambda row: row["metrics"][METRIC])
            for budget in BUDGETS
        ]
        result[name] = trained[name] | {
            "found": [{k: row[k] for k in ("sampler", "value", "nfe", "metrics")} for row in rows],
            "best": {f"NFE <= {budget}": row["sampler"] for budget, row in zip(BUDGETS, best[name], strict=True)},
        }
    result["ours / theirs"] = {
        f"NFE <= {budget}": a["metrics"][METRIC] / b["metrics"][METRIC]
        for budget, a, b in zip(BUDGETS, best[OURS], best[THEIRS], strict=True)
    }
    write_json(options.output, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
