"""Folders of diffusers: a ``UNet2DModel`` and its scheduler's configuration become our network and SDE.

Their index j = 0 … N − 1 is our t = (j + 1)/N on the exact chain, which is told N t − 1 (``noise_label="discrete"``).
Pictures of DDPM's schedulers are in [−1, 1] like ours. Those of the VE scheduler are in [0, 1]: on x′ = 2x − 1, where
we work, σ′ = 2σ. Its networks return h/σ, the score, so that h = −ε.

Where no scheduler is there, the noise is what the user's configuration says of ``sde`` and ``denoiser``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError
from sde_diffusion.networks.skeleton import skeleton
from sde_diffusion.terminal import notice
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained
from sde_diffusion.training.loaders.descriptions import build, read_config
from sde_diffusion.training.loaders.diffusers_layout import (
    INDEX,
    MODEL,
    SCHEDULER,
    Layout,
    digest,
    find,
    read_weights,
    recognises,
    step_of,
)
from sde_diffusion.training.loaders.diffusers_model import (
    network_options,
    old_middle,
    picture_shape,
    read_model,
    to_ours,
)
from sde_diffusion.training.loaders.diffusers_scheduler import not_taken_over, read_diffusion, reverses_sign

AGREEMENT = 1e-5  # relative, of the outputs in float32

INPUT = {(False, False): (1.0, 0.0), (False, True): (2.0, -1.0), (True, False): (0.5, 0.5), (True, True): (1.0, 0.0)}
"""Scale and shift from our x to what the network sees, by whether its pictures are in [0, 1] and it centres them."""


def _difference(
    model: dict[str, Any], tensors: dict[str, Tensor], network: nn.Module, shape: Sequence[int], sign: float
) -> float | None:
    """Return the relative difference between our output and that of diffusers; None where it is not installed.

    On small pictures, of 2×2 where they are smallest: the weights do not know the size.
    """
    try:
        from diffusers import UNet2DModel
    except (ImportError, RuntimeError):  # not there, or not complete
        return None
    theirs_network = UNet2DModel.from_config({k: v for k, v in model.items() if not k.startswith("_")})
    theirs_network.load_state_dict(tensors)
    fourier = model["time_embedding_type"] == "fourier"
    sides = [min(side, 2 ** len(model["block_out_channels"])) for side in shape[1:]]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, shape[0], *sides, generator=generator)
    label = torch.tensor([0.5, 20.0]) if fourier else torch.tensor([3.0, 700.0])  # σ, or the index
    told = {
        "number": torch.tensor([2.0, 5.0]),
        "code": torch.randn(2, theirs_network.time_embedding.linear_2.out_features, generator=generator),
        "classes": torch.arange(2) % (model["num_class_embeds"] or 1),
    }
    given = {name: told[name] for name in getattr(network, "conditions", ())}
    seen = getattr(network, "input_scale", 1.0) * x + getattr(network, "input_shift", 0.0)
    if model["center_input_sample"]:
        seen = 0.5 * seen + 0.5
    with torch.no_grad():
        theirs = theirs_network.eval()(seen, label, class_labels=next(iter(given.values()), None)).sample
        ours = network.eval()(x, label.log() if fourier else label, **given)
    if fourier:
        theirs = theirs * label[:, None, None, None]
    return float((ours - sign * theirs).norm() / theirs.norm().clamp_min(1e-30))


def _diffusion(layout: Layout, options: dict[str, Any], config: dict[str, Any] | None) -> tuple[dict[str, Any], Any]:
    """Return our configuration of the noise, and what the scheduler says; or the user's, and None.

    Raises:
        InputError: if there is neither, naming what is needed, or the two cannot be.
    """
    fourier = options["embedding"] == "fourier"
    if layout.scheduler is not None:
        scheduler = read_config(layout.scheduler, "the configuration of a scheduler")
        return read_diffusion(layout.scheduler, scheduler, fourier, options["learned_variance"]), scheduler
    if config is None:
        named = f" ({INDEX} names {layout.named}, not its numbers)" if layout.named else ""
        sde, label = ("ve", "log_sigma") if fourier else ("ddpm", "discrete")
        raise InputError(
            f"{layout.model}: no {SCHEDULER} in it or near it{named}: nothing says by which noise it was trained; put "
            f"it there, or give --config=FILE.py with sde ({sde} with its options), denoiser.noise_label ({label}) and "
            "denoiser.prediction"
        )
    told = config["denoiser"]["noise_label"]["name"]
    if fourier is not (told == "log_sigma"):
        kind = "log_sigma, for the network is told σ" if fourier else "another, for the network is not told σ"
        raise InputError(f"denoiser.noise_label={told!r}: expected {kind}; {layout.model} has no {SCHEDULER}")
    return {}, None


@LOADERS.register("diffusers")
class DiffusersFolder(Loader):
    """A local folder of diffusers: a pipeline of ``UNet2DModel`` and scheduler, or the model alone.

    Of what the scheduler says of sampling alone, its variance becomes an option of ours, and how it bounds x₀
    (``clip_sample``, ``thresholding``) our ``denoiser.thresholding``; what is not taken over is told in a line.
    """

    def recognises(self, path: Path) -> bool:
        return recognises(path)

    def load(self, path: Path, config: dict[str, Any] | None) -> Pretrained:
        layout = find(path)
        file = layout.model / MODEL
        model = read_model(file)
        tensors = read_weights(layout.model)
        model = old_middle(model, tensors)
        shape = picture_shape(file, model, config)
        options = network_options(file, model)
        diffusion, scheduler = _diffusion(layout, options, config)
        denoiser = diffusion.get("denoiser") or (config or {})["denoiser"]
        label = denoiser["noise_label"]
        halved = label["name"] == "log_sigma" and label["log_sigma"]["scale"] == 0.5
        options["input_scale"], options["input_shift"] = INPUT[halved, model["center_input_sample"]]
        network: nn.Module = build(file, skeleton, "unet2d", shape=shape, **options)
        own = network.state_dict()
        opposite = options["embedding"] == "fourier" if scheduler is None else reverses_sign(scheduler)
        how: dict[str, Any] = {"options": options, "cosine_first": model["flip_sin_to_cos"], "score": opposite}
        weights = to_ours(layout.model, tensors, own, **how)
        network.load_state_dict(weights, assign=True)
        difference = _difference(model, tensors, network, shape, -1.0 if opposite else 1.0)
        if difference is not None and not difference <= AGREEMENT:
            raise InputError(
                f"{path}: our output differs from that of diffusers by {difference:.1e} relative; expected at most "
                f"{AGREEMENT:.0e}; please report this"
            )
        raw = None if layout.raw is None else to_ours(layout.raw, read_weights(layout.raw), own, **how)
        left = not_taken_over(scheduler or {"_class_name": ""})
        if left:
            how_to = "how that scheduler draws samples; not taken over, choose --sampler and its options"
            notice(f"{layout.scheduler}: {', '.join(left)}: {how_to}")
        source = {
            "format": "diffusers",
            "path": str(path),
            "sha256": digest(layout.model),
            "diffusers_version": model.get("_diffusers_version"),
            "scheduler": scheduler,
            "not_taken_over": left,
            "difference": difference,
        }
        found = {"data": {"shape": shape, "levels": 256}, "network": {"name": "unet2d", "unet2d": options}, **diffusion}
        return Pretrained(found, weights, raw, step_of(layout.model), source)
