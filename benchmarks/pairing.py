"""What benchmarks share: runs in turns, ratios with their spread, peaks of memory, two networks in both libraries."""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any

import torch
from torch import nn

import sde_diffusion as sd
from sde_diffusion.commands.main import main as sde_diffusion
from sde_diffusion.files import provenance, write_json
from sde_diffusion.networks import NETWORKS as OF_OURS
from sde_diffusion.networks.execution import LAYOUTS, PRECISIONS, execute, lay_out, precision_of
from sde_diffusion.reading import read_json
from sde_diffusion.training.loaders.diffusers_model import network_options, picture_shape, read_model

THEIRS, OURS = "theirs", "ours"
"""The two sides; what follows after commas says how a network is run, such as "ours, bfloat16, compiled"."""
WORDS = (*PRECISIONS[1:], *LAYOUTS, "compiled", "graphs")
NETWORKS: dict[str, dict[str, Any]] = {
    "cifar10": {  # google/ddpm-cifar10-32, 35.7M parameters
        "sample_size": 32,
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
        "downsample_padding": 0,
    },
    "mnist": {  # 1.1M parameters
        "sample_size": 28,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    },
}
"""Arguments of diffusers' UNet2DModel; the weights are random, which costs the same."""


def shape_of(name: str, **changes: Any) -> tuple[int, int, int]:
    model = {**NETWORKS[name], **changes}
    return model.get("in_channels", 3), model["sample_size"], model["sample_size"]


def has_diffusers() -> bool:
    return importlib.util.find_spec("diffusers") is not None


def save_both(name: str, folder: Path, seed: int, **changes: Any) -> None:
    """Write a pipeline of theirs with random weights, and the same converted to a run of ours.

    Without `diffusers` only what the network is, from which :func:`load_ours` builds ours.
    """
    if not has_diffusers():
        described = {"_class_name": "UNet2DModel", **NETWORKS[name], **changes}
        (folder / "unet").mkdir(parents=True)
        write_json(folder / "unet" / "config.json", described)
        return
    import diffusers

    torch.manual_seed(seed)
    model = diffusers.UNet2DModel(**{**NETWORKS[name], **changes})
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler()).save_pretrained(folder)
    if sde_diffusion(["convert", f"--source={folder}", f"--workdir={folder / OURS}", "--quiet"]):
        raise SystemExit(1)


def load_theirs(folder: Path, device: str) -> nn.Module:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    model: nn.Module = diffusers.UNet2DModel.from_pretrained(folder / "unet").to(device)
    return model


def load_ours(
    folder: Path, side: str, options: argparse.Namespace, training: bool = False
) -> tuple[sd.Denoiser, nn.Module]:
    """Read the same weights as a denoiser of ours, run as its side and the options say, and its network."""
    if (folder / OURS).exists():
        denoiser = sd.load_pretrained(folder / OURS, device=options.device)
    else:
        path = folder / "unet" / "config.json"
        model = read_model(path)
        built = OF_OURS.build("unet2d", shape=picture_shape(path, model, None), **network_options(path, model))
        built = lay_out(built, "channels_last").to(options.device).requires_grad_(False).eval()
        denoiser = sd.Denoiser(built, sd.DDPMChain.linear(), noise_label="discrete")
    network: nn.Module = denoiser.net  # type: ignore[assignment]
    denoiser.net = run_as(side, network, training)
    return denoiser, network


def run_as(side: str, network: nn.Module, training: bool) -> nn.Module:
    """Return a network as a side says: its precision and layout, else "auto"; compiled, with graphs or without."""
    words = side.split(", ")[1:]
    precision, layout = (next((w for w in words if w in among), "auto") for among in (PRECISIONS, LAYOUTS))
    if "compiled" in words:
        network = torch.compile(network)  # type: ignore[assignment]
    return execute(network, precision, "graphs" in words, training, layout=layout)


def as_theirs(side: str, device: str) -> torch.autocast:
    """Return the context that their networks are run in."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled="bfloat16" in side)


def how(text: str) -> str:
    """Read the value of ``--how``: ours, run so."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in WORDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{text}: expected some of {', '.join(WORDS)}, with commas between")
    return ", ".join([OURS, *words])


def parser(description: str) -> argparse.ArgumentParser:
    """Return what comparisons of the two networks are told."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--network", choices=list(NETWORKS), action="append", help="default: both")
    found.add_argument("--device", default="cpu")
    found.add_argument("--batch_size", type=int, default=16)
    found.add_argument("--steps", type=int, default=4)
    found.add_argument("--repeats", type=number_of_turns, default=5)
    found.add_argument("--threads", type=int, default=0, help="0 leaves PyTorch's choice")
    text = f"how our network is run, some of {', '.join(WORDS)}; again for another; default: as it chooses itself"
    found.add_argument("--how", type=how, action="append", help=text)
    text = "count the processor's time, not the clock's: on one thread of a busy machine"
    found.add_argument("--cpu_time", action="store_true", help=text)
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--output", type=Path, default=Path(sys.argv[0]).with_suffix(".json"))
    found.add_argument("--only", help=argparse.SUPPRESS)
    found.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return found


def in_turns(runs: dict[str, Callable[[], float]], repeats: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Run all in turns and return the times of each; the first turns, which warm up, are dropped."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + warm_up):
        for name, run in runs.items():
            times[name].append(run())
    return {name: values[warm_up:] for name, values in times.items()}


def number_of_turns(text: str) -> int:
    """Read the value of ``--repeats``."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 2, for there to be a spread")
    return int(text)


def spread(values: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values, n=20, method="inclusive")  # within what was seen
    return {"median": statistics.median(values), "p5": cuts[0], "p95": cuts[-1]}


def ratio(a: list[float], b: list[float]) -> dict[str, float]:
    return spread([x / y for x, y in zip(a, b, strict=True)])


def reset_peak(device: str) -> None:
    """Forget the peak so far; on Linux by its own file."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory(device: str = "cpu") -> float:
    """Peak memory of this process in MiB: resident (Linux), or what PyTorch held on the device."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    # Not getrusage: its peak survives exec, so that a child reports its parent's.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def clock(options: argparse.Namespace) -> Callable[[], float]:
    """Return what tells the time."""
    return process_time if getattr(options, "cpu_time", False) else perf_counter


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def profile(run: Callable[[], float], device: str) -> dict[str, float]:
    """Return the share of the time of each operation that takes 2 % or more; what a compiler fused has one name."""
    on_device = device != "cpu"
    with torch.profiler.profile() as trace:
        run()
    events = trace.key_averages()
    own = {e.key: e.self_device_time_total if on_device else e.self_cpu_time_total for e in events}
    total = sum(own.values())
    named = {("fused by the compiler" if "CompiledFxGraph" in key else key): v / total for key, v in own.items()}
    return {key: share for key, share in sorted(named.items(), key=lambda item: -item[1]) if share >= 0.02}


Prepare = Callable[[str, str, Path, argparse.Namespace], Callable[[], float]]
"""``prepare(side, network, folder, options)`` returns a function that runs once and returns seconds an image."""


def compare(prepare: Prepare, options: argparse.Namespace) -> None:
    """Compare both sides on the networks of the options and write the JSON; each peak of memory in its own process."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.only:  # a child: tell the memory before and at the peak of two runs; loading and compiling leave no peak
        run = prepare(options.only, options.network[0], options.folder, options)
        run()
        reset_peak(options.device)
        loaded = peak_memory(options.device)
        run(), run()
        print(loaded, peak_memory(options.device))
        return
    sides = [THEIRS, *(options.how or [OURS])]
    # Networks measured before are kept, each with what made it.
    results = read_json(options.output)["networks"] if options.output.exists() else {}
    probe = execute(nn.Linear(1, 1, device=options.device))
    facts = {
        "threads": torch.get_num_threads(),
        "precision by default": precision_of(probe),
        **{key: getattr(options, key) for key in ("seed", "batch_size", "steps", "repeats", "cpu_time")},
    }
    for name in options.network or NETWORKS:
        with TemporaryDirectory() as temporary:
            folder = Path(temporary)
            save_both(name, folder, options.seed)
            runs = {side: prepare(side, name, folder, options) for side in sides}
            times = in_turns(runs, options.repeats, warm_up=1)
            memory = {}
            for side in sides:
                command = [sys.executable, *sys.argv, "--network", name, "--only", side, "--folder", str(folder)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                memory[side] = dict(zip(("loaded", "peak"), map(float, done.stdout.split()[-2:]), strict=True))
        results[name] = {
            "made_by": provenance(options.device, **facts),
            "images_per_second": {side: spread([1.0 / v for v in values]) for side, values in times.items()},
            "over_theirs": {side: ratio(times[THEIRS], times[side]) for side in sides[1:]},
            "memory_MiB": memory,
            "share_of_time": {side: profile(run, options.device) for side, run in runs.items()},
        }
        write_json(options.output, {"networks": results})
        print(name, json.dumps(results[name], indent=2), flush=True)
