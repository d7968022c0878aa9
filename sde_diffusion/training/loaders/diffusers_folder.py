"""Pipeline folders of diffusers: a ``UNet2DModel`` and its scheduler's configuration become our network and SDE.

    model_index.json  unet/{config.json, diffusion_pytorch_model.safetensors}  scheduler/scheduler_config.json

A folder with the model alone is read too, with ``scheduler_config.json`` in it or ``scheduler/`` in or beside it.

Their index j = 0 … N − 1 is our t = (j + 1)/N on the exact chain, which is told N t − 1 (``noise_label="discrete"``).
Pictures of DDPM's schedulers are in [−1, 1] like ours. Those of the VE scheduler are in [0, 1]: on x′ = 2x − 1, where
we work, σ′ = 2σ. Its networks return h/σ, the score, so that h = −ε.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sde_diffusion.errors import InputError, require
from sde_diffusion.files import read_json, sha256
from sde_diffusion.networks import NETWORKS
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained
from sde_diffusion.training.loaders.descriptions import build, read_config, refuse
from sde_diffusion.training.loaders.diffusers_model import load_weights, network_options, picture_shape, read_model
from sde_diffusion.training.loaders.diffusers_scheduler import read_diffusion

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
AGREEMENT = 1e-5  # relative, of the outputs in float32

INPUT = {(False, False): (1.0, 0.0), (False, True): (2.0, -1.0), (True, False): (0.5, 0.5), (True, True): (1.0, 0.0)}
"""Scale and shift from our x to what the network sees, by whether it is VE and ``center_input_sample``."""


def _folders(source: Path) -> tuple[Path, Path]:
    """Return the folder of the model and the file of the scheduler."""
    index = source / "model_index.json"
    if index.is_file():
        for part, value in read_config(index, "the index of a diffusers pipeline").items():
            if part.startswith("_") or value in (None, [None, None]):
                continue
            if part not in ("unet", "scheduler"):
                raise refuse(index, part, value, "not supported; expected a pipeline of unet and scheduler alone")
            if not isinstance(value, list) or len(value) != 2 or value[0] != "diffusers":
                raise refuse(index, part, value, "not supported; code outside of diffusers is not run")
        return source / "unet", source / "scheduler" / SCHEDULER
    places = [source, source / "scheduler", source.parent / "scheduler"]
    found = [place / SCHEDULER for place in places if (place / SCHEDULER).is_file()]
    require(bool(found), "source", str(source), f"{SCHEDULER} in it, or in a folder scheduler/ in or beside it")
    return source, found[0]


def _difference(folder: Path, network: nn.Module, shape: Sequence[int], levels: int, ve: bool) -> float | None:
    """Return the relative difference between our output and that of diffusers; None where it is not installed.

    On small pictures, of 2×2 where they are smallest: the weights do not know the size.
    """
    try:
        from diffusers import UNet2DModel
    except (ImportError, RuntimeError):  # not there, or not complete
        return None
    model = UNet2DModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False)
    sides = [min(side, 2**levels) for side in shape[1:]]
    x = torch.randn(2, shape[0], *sides, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0.5, 20.0]) if ve else torch.tensor([3.0, 700.0])  # σ, or the index
    classes = torch.arange(2) % model.config.num_class_embeds if model.config.num_class_embeds else None
    with torch.no_grad():
        theirs = model.eval().float()(0.5 * x + 0.5 if ve else x, label, class_labels=classes).sample
        ours = network.eval()(x, label.log() if ve else label, classes)
    if ve:
        theirs = -theirs * label[:, None, None, None]
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))


@LOADERS.register("diffusers")
class DiffusersFolder(Loader):
    """A local folder of diffusers: a pipeline of ``UNet2DModel`` and scheduler, or the model with a scheduler by it.

    Of what the scheduler says of sampling alone, its variance becomes an option of ours, and how it bounds x₀
    (``clip_sample``, ``thresholding``) our ``denoiser.thresholding``; the rest is kept in ``source`` and not acted on.
    """

    def recognises(self, path: Path) -> bool:
        if (path / "model_index.json").is_file():
            return True
        config = path / "config.json"
        content = read_json(config) if config.is_file() else None
        return isinstance(content, dict) and "_class_name" in content

    def load(self, path: Path, config: dict[str, Any] | None) -> Pretrained:
        folder, schedule = _folders(path)
        model = read_model(folder / "config.json")
        scheduler = read_config(schedule, "the configuration of a scheduler")
        shape = picture_shape(folder / "config.json", model, config)
        options = network_options(folder / "config.json", model)
        diffusion = read_diffusion(schedule, scheduler, options["embedding"] == "fourier")
        ve = diffusion["sde"]["name"] == "ve"
        options["input_scale"], options["input_shift"] = INPUT[ve, model["center_input_sample"]]
        with torch.device("meta"):
            network: nn.Module = build(folder / "config.json", NETWORKS, "unet2d", shape=shape, **options)
        weights = load_weights(folder / WEIGHTS, network.state_dict(), options, model["flip_sin_to_cos"], ve)
        network.load_state_dict(weights, assign=True)
        difference = _difference(folder, network, shape, len(options["widths"]), ve)
        if difference is not None and not difference <= AGREEMENT:
            raise InputError(
                f"{path}: our output differs from that of diffusers by {difference:.1e} relative; expected at most "
                f"{AGREEMENT:.0e}; please report this"
            )
        source = {
            "format": "diffusers",
            "path": str(path),
            "sha256": sha256(folder / WEIGHTS),
            "diffusers_version": model.get("_diffusers_version"),
            "scheduler": scheduler,
            "difference": difference,
        }
        found = {"data": {"shape": shape, "levels": 256}, "network": {"name": "unet2d", "unet2d": options}, **diffusion}
        return Pretrained(found, weights, None, 0, source)
