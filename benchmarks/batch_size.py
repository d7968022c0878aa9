"""Images per second by batch size: how many samples to draw at a time.

    python benchmarks/batch_size.py --threads=1 --cpu_time

One evaluation by the sampler's loop, of the network of the built-in configuration, the one that comes with the package
and the two that other scripts compare; all batch sizes in turns, each rate over that of `--against` turn by turn.
Batches that would take longer than `--most` seconds are left out. Writes `benchmarks/batch_size.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pairing import NETWORKS, OURS, in_turns, load_ours, parser, ratio, save_both, shape_of, spread
from throughput import timed

import samplers
import sde_diffusion as sd
from sde_diffusion import config as configuration
from sde_diffusion.files import provenance, write_json
from sde_diffusion.networks.execution import execute, precision_of

BATCHES = (1, 4, 8, 16, 32, 64, 128, 256, 512)
BUILT_IN, SHIPPED = "the built-in configuration's", "fashion_mnist"


def load(name: str, folder: Path, options: argparse.Namespace) -> tuple[sd.Denoiser, tuple[int, ...]]:
    """Return a denoiser as sampling runs it, and the shape of an example."""
    if name in NETWORKS:
        save_both(name, folder / name, options.seed)
        return load_ours(folder / name, OURS, options)[0], shape_of(name)
    if name == SHIPPED:
        denoiser, shape = sd.load_pretrained(name, device=options.device), (1, 28, 28)
        denoiser.net = execute(denoiser.net)  # type: ignore[arg-type]
        return denoiser, shape
    config, shape = configuration.default_config(), (1, 8, 8)
    network = configuration.build_network(config, shape).to(options.device).requires_grad_(False)
    return configuration.build_denoiser(config, configuration.execute_network(config, network)), shape


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Return rates by batch size, and each over that of the batch to compare with."""
    denoiser, shape = load(name, folder, options)
    sampler = samplers.build("ddim", num_steps=1)  # its denoising step alone
    runs: dict[str, Callable[[], float]] = {}
    for batch in BATCHES:
        run = timed(partial(sampler.draw, denoiser, (batch, *shape)), options)
        run()
        if run() * 2.0 > options.most:  # the next is twice as large
            break
        runs[str(batch)] = run
    times = in_turns(runs, options.repeats, warm_up=1)
    each = {batch: [t / int(batch) for t in found] for batch, found in times.items()}
    against = max((b for b in each if int(b) <= options.against), key=int)
    return {
        "precision": precision_of(denoiser.net),
        "images_per_second": {batch: spread([1.0 / t for t in found]) for batch, found in each.items()},
        f"over_batches_of_{against}": {batch: ratio(each[against], found) for batch, found in each.items()},
    }


def main() -> None:
    found = parser("Images per second by batch size.")
    found.add_argument("--most", type=float, default=10.0, help="seconds that a batch may take")
    found.add_argument("--against", type=int, default=64, help="the batch that others are compared with")
    options = found.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    facts = {"threads": torch.get_num_threads(), **{k: getattr(options, k) for k in ("seed", "repeats", "cpu_time")}}
    results: dict[str, object] = {"made_by": provenance(options.device, **facts)}
    with TemporaryDirectory() as temporary:
        for name in options.network or (BUILT_IN, SHIPPED, *NETWORKS):
            results[name] = measure(name, Path(temporary), options)
            write_json(options.output, results)
            print(name, json.dumps(results[name], indent=2), flush=True)


if __name__ == "__main__":
    main()
