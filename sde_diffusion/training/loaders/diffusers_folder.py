"""Pipeline folders of diffusers: a ``UNet2DModel`` and its scheduler's configuration become our network and SDE.

    model_index.json  unet/{config.json, diffusion_pytorch_model.safetensors}  scheduler/scheduler_config.json

A folder with the model alone is read too, with ``scheduler_config.json`` in it or ``scheduler/`` in or beside it.

Their index j = 0 … N − 1 is our t = (j + 1)/N on the exact chain, which is told N t − 1 (``conditioning="discrete"``).
Pictures of DDPM's schedulers are in [−1, 1] like ours. Those of the VE scheduler are in [0, 1]: on x′ = 2x − 1, where
we work, σ′ = 2σ. Its networks return h/σ, the score, so that h = −ε.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.files import read_json, sha256
from sde_diffusion.networks import NETWORKS
from sde_diffusion.registry import Registry, hint
from sde_diffusion.sdes import SDES
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
AGREEMENT = 1e-5  # relative, of the outputs in float32

MODEL: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""The options of ``UNet2DModel`` and what they are where a folder does not say."""

NONE_TOO = ("mid_block_type", "downsample_type", "upsample_type", "attention_head_dim", "norm_num_groups")
"""Options that may be null though their default is not."""

KNOWN: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier"),
    "class_embed_type": (None,),
    "mid_block_type": ("UNetMidBlock2D", None),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish", "gelu", "mish", "relu"),
}
"""What we have of options with few values."""

LEVELS = {
    "down": {
        "DownBlock2D": "conv",
        "AttnDownBlock2D": "+attention",
        "ResnetDownsampleBlock2D": "block",
        "SkipDownBlock2D": "fir",
        "AttnSkipDownBlock2D": "fir+attention",
    },
    "up": {
        "UpBlock2D": "conv",
        "AttnUpBlock2D": "+attention",
        "ResnetUpsampleBlock2D": "block",
        "SkipUpBlock2D": "fir",
        "AttnSkipUpBlock2D": "fir+attention",
    },
}
"""Our kinds of levels; "+attention" takes its change of size from ``downsample_type`` or ``upsample_type``."""

CHAINS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""Schedulers that sample DDPM's chain, with the same options and defaults for its betas."""

VE = "ScoreSdeVeScheduler"

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}

INPUT = {(False, False): (1.0, 0.0), (False, True): (2.0, -1.0), (True, False): (0.5, 0.5), (True, True): (1.0, 0.0)}
"""Scale and shift from our x to what the network sees, by whether it is VE and ``center_input_sample``."""

NAMES = [
    (r"^time\.0\.frequencies$", "time_proj.weight"),
    (r"^time\.1\.", "time_embedding.linear_1."),
    (r"^time\.3\.", "time_embedding.linear_2."),
    (r"^classes\.", "class_embedding."),
    (r"^stem\.", "conv_in."),
    (r"^norm\.", "conv_norm_out."),
    (r"^head\.", "conv_out."),
    (r"^middle\.attention\.", "mid_block.attentions.0."),
    (r"^middle\.", "mid_block."),
    (r"^(down|up)\.", r"\1_blocks."),
    (r"\.blocks\.", ".resnets."),
    (r"\.attention\.", ".attentions."),
    (r"^(down|up)(_blocks\.\d+)\.resample\.", r"\1\2.\1samplers.0."),
    (r"\.(from_picture|to_picture)\.", ".skip_conv."),
    (r"\.picture_norm\.", ".skip_norm."),
    (r"\.norm_in\.", ".norm1."),
    (r"\.norm_out\.", ".norm2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.conv_out\.", ".conv2."),
    (r"\.code\.", ".time_emb_proj."),
    (r"\.skip\.", ".conv_shortcut."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.out\.", r"\1.to_out.0."),
]
"""What leads from our names to theirs, one after the other."""


def _their_names(name: str, options: dict[str, Any]) -> list[str]:
    """Return the names of theirs that make up one of ours: three for q, k and v, else one."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    level = re.match(r"(down|up)_blocks\.(\d+)", name)
    if level and options[level[1]][int(level[2])].startswith("fir"):
        name = name.replace(f".{level[1]}samplers.0.", f".resnet_{level[1]}.")
        name = re.sub(r"^(up_blocks\.\d+\.attentions)\.\d+", r"\1.0", name)
    return [name.replace(".qkv.", f".to_{part}.") for part in "qkv"] if ".qkv." in name else [name]


def _read_config(path: Path, expected: str) -> dict[str, Any]:
    require(path.is_file(), "source", str(path), f"{expected}; there is no such file")
    content = read_json(path)
    require(isinstance(content, dict), "source", str(path), expected)
    return dict(content)


def _refuse(path: Path, key: str, value: Any, reason: str) -> InputError:
    return InputError(f"{path}: {key}={value!r}: {reason}")


def _build(path: Path, registry: Registry[Any], name: str, **options: Any) -> Any:
    """Make an entry of a registry from what a file says."""
    try:
        return registry.build(name, **options)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _require_known(path: Path, key: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        near = hint(value, [k for k in known if k]) if isinstance(value, str) else ";"
        raise _refuse(path, key, value, f"not supported{near} supported: {', '.join(map(str, known))}")


def _folders(source: Path) -> tuple[Path, Path]:
    """Return the folder of the model and the file of the scheduler."""
    index = source / "model_index.json"
    if index.is_file():
        for part, value in _read_config(index, "the index of a diffusers pipeline").items():
            if part.startswith("_") or value in (None, [None, None]):
                continue
            if part not in ("unet", "scheduler"):
                raise _refuse(index, part, value, "not supported; expected a pipeline of unet and scheduler alone")
            if not isinstance(value, list) or len(value) != 2 or value[0] != "diffusers":
                raise _refuse(index, part, value, "not supported; code outside of diffusers is not run")
        return source / "unet", source / "scheduler" / SCHEDULER
    places = [source, source / "scheduler", source.parent / "scheduler"]
    found = [place / SCHEDULER for place in places if (place / SCHEDULER).is_file()]
    require(bool(found), "source", str(source), f"{SCHEDULER} in it, or in a folder scheduler/ in or beside it")
    return source, found[0]


def _model(path: Path) -> dict[str, Any]:
    """Return the options of their model, all of them, each one that we have."""
    content = _read_config(path, "the configuration of a UNet2DModel")
    _require_known(path, "_class_name", content.get("_class_name"), ["UNet2DModel"])
    for key, value in content.items():
        if key.startswith("_"):
            continue
        if key not in MODEL:
            raise _refuse(path, key, value, f"not supported{hint(key, list(MODEL))} not known of UNet2DModel here")
        default = MODEL[key]
        kind = (int, float) if isinstance(default, (int, float)) else type(default)
        free = default is None or (value is None and key in NONE_TOO)
        if not free and not isinstance(value, kind):
            raise _refuse(path, key, value, f"expected a value like {default!r}")
    model = {**MODEL, **content}
    for key, known in KNOWN.items():
        _require_known(path, key, model[key], known)
    if model["out_channels"] != model["in_channels"]:
        raise _refuse(path, "out_channels", model["out_channels"], "not supported; expected as many as in_channels")
    return model


def _levels(path: Path, model: dict[str, Any], way: str) -> tuple[str, ...]:
    """Return our kinds of the levels of one way, "down" or "up"."""
    kinds = []
    for name in model[f"{way}_block_types"]:
        plain = str(name).removeprefix("UNetRes")
        _require_known(path, f"{way}_block_types", plain, list(LEVELS[way]))
        kind = LEVELS[way][plain]
        if kind == "+attention":
            resample = model[f"{way}sample_type"] or "conv"
            _require_known(path, f"{way}sample_type", resample, ["conv", "resnet"])
            kind = ("conv" if resample == "conv" else "block") + kind
        kinds.append(kind)
    return tuple(kinds)


def _shape(path: Path, model: dict[str, Any], config: dict[str, Any] | None) -> tuple[int, ...]:
    """Return (C, H, W), from the folder and, where it does not say, from the user's ``data.shape``."""
    channels, size = model["in_channels"], model["sample_size"]
    wanted = (config or {}).get("data", {}).get("shape")
    if size is None and wanted is None:
        raise _refuse(path, "sample_size", None, "expected the height and width of a picture; write them there")
    sides = list(wanted)[1:] if size is None else [size, size] if isinstance(size, int) else list(size)
    shape = (channels, *sides)
    if wanted is not None and tuple(wanted) != shape:
        key = "in_channels" if wanted[0] != channels else "sample_size"
        raise _refuse(path, key, model[key], f"the model is for pictures {shape}, the data are {tuple(wanted)}")
    return shape


def _options(path: Path, model: dict[str, Any]) -> dict[str, Any]:
    """Return the options of our network that their model has."""
    scale_shift = model["resnet_time_scale_shift"] == "scale_shift"
    fourier = model["time_embedding_type"] == "fourier"
    middle = "none" if model["mid_block_type"] is None else "attention" if model["add_attention"] else "plain"
    return {
        "widths": tuple(model["block_out_channels"]),
        "num_blocks": model["layers_per_block"],
        "down": _levels(path, model, "down"),
        "up": _levels(path, model, "up"),
        "middle": middle,
        "middle_divisor": float(model["mid_block_scale_factor"]),
        "middle_groups": model["attn_norm_num_groups"] or (-1 if scale_shift else 0),
        "head_width": model["attention_head_dim"] or 0,
        "groups": model["norm_num_groups"] or 0,
        "eps": float(model["norm_eps"]),
        "activation": "silu" if model["act_fn"] == "swish" else model["act_fn"],
        "scale_shift": scale_shift,
        "padding": model["downsample_padding"],
        "dropout": float(model["dropout"]),
        "embedding": "fourier" if fourier else "sinusoidal",
        "frequency_shift": float(model["freq_shift"]),
        "code_width": model["time_embedding_dim"] or 0,
        "num_classes": model["num_class_embeds"] or 0,
    }


def _diffusion(path: Path, scheduler: dict[str, Any], fourier: bool) -> dict[str, Any]:
    """Return our configuration of the SDE, the denoiser, and what goes with them."""
    name = scheduler.get("_class_name")
    _require_known(path, "_class_name", name, [*CHAINS, VE])
    if fourier is not (name == VE):
        kind, told = ("fourier", "σ") if fourier else ("positional", "the index")
        reason = f"not supported with time_embedding_type={kind!r}, which has to be told {told}"
        raise _refuse(path, "_class_name", name, reason)
    if name == VE:
        ends = {"sigma_min": scheduler.get("sigma_min", 0.01), "sigma_max": scheduler.get("sigma_max", 1348.0)}
        for key, value in ends.items():
            require_float(f"{path}: {key}", value, 0.0, open_low=True)
        conditioning = {"name": "log_sigma", "log_sigma": {"scale": 0.5}}
        denoiser = {"prediction": "eps", "sigma_data": 0.0, "conditioning": conditioning}
        return {"sde": {"name": "ve", "ve": {key: 2.0 * value for key, value in ends.items()}}, "denoiser": denoiser}
    if scheduler.get("rescale_betas_zero_snr"):
        raise _refuse(path, "rescale_betas_zero_snr", True, "not supported; the last β is 1, where x₀ cannot be read")
    prediction = scheduler.get("prediction_type", "epsilon")
    _require_known(path, "prediction_type", prediction, list(PREDICTIONS))
    chain = _chain(path, scheduler)
    _build(path, SDES, "ddpm", **chain)
    discrete = {"num_train_steps": len(chain["betas"]) if "betas" in chain else chain["num_train_steps"]}
    conditioning = {"name": "discrete", "discrete": discrete}
    variance = "beta" if str(scheduler.get("variance_type")).startswith("fixed_large") else "posterior"
    return {
        "sde": {"name": "ddpm", "ddpm": chain},
        "denoiser": {"prediction": PREDICTIONS[prediction], "sigma_data": 0.0, "conditioning": conditioning},
        "loss": {"times": {"name": "discrete", "discrete": discrete}, "weighting": {"name": "simple"}},
        "sampler": {"ancestral": {"variance": variance}},
    }


def _chain(path: Path, scheduler: dict[str, Any]) -> dict[str, Any]:
    """Return our options of the chain with their betas: by name where we have the schedule, else one by one."""
    betas = scheduler.get("trained_betas")
    if betas is not None:
        good = isinstance(betas, list) and len(betas) > 0 and all(isinstance(beta, float) for beta in betas)
        require(good, f"{path}: trained_betas", betas, "a list of numbers")
        return {"betas": tuple(betas)}
    number, schedule = scheduler.get("num_train_timesteps", 1000), scheduler.get("beta_schedule", "linear")
    first, last = scheduler.get("beta_start", 1e-4), scheduler.get("beta_end", 0.02)
    require_int(f"{path}: num_train_timesteps", number, 1)
    require_float(f"{path}: beta_start", first, 0.0)
    require_float(f"{path}: beta_end", last, 0.0)
    _require_known(path, "beta_schedule", schedule, ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
    if schedule == "linear":
        return {"schedule": "linear", "num_train_steps": number, "beta_first": first, "beta_last": last}
    if schedule == "squaredcos_cap_v2":
        return {"schedule": "cosine", "num_train_steps": number}
    if schedule == "scaled_linear":
        grid = torch.linspace(first**0.5, last**0.5, number, dtype=torch.float64) ** 2
    else:
        grid = torch.linspace(-6.0, 6.0, number, dtype=torch.float64).sigmoid() * (last - first) + first
    return {"betas": tuple(grid.tolist())}


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Return their weights by their present names, in float32."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    pickles = sorted(path.parent.glob("*.bin"))
    remedy = "there is no such file"
    if pickles:
        remedy = f"{pickles[0].name} is a pickle, which may run code, and is not read; "
        remedy += "save it with diffusers as model.save_pretrained(FOLDER, safe_serialization=True)"
    require(path.is_file(), "source", str(path), "the weights as safetensors", remedy)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
            name = re.sub(rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.", name)  # the names of the first releases
        renamed[name] = tensor.float()
    return renamed


def _translate(
    path: Path, tensors: dict[str, Tensor], own: dict[str, Tensor], options: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the weights by our names.

    Raises:
        InputError: naming missing and unexpected keys and shapes that do not fit, by their names.
    """
    parts = {name: _their_names(name, options) for name in own}
    shapes = {
        part: (tensor.shape[0] // len(parts[name]), *tensor.shape[1:])
        for name, tensor in own.items()
        for part in parts[name]
    }
    problems = [f"missing {name}" for name in shapes if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in shapes]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{path}: does not fit its config.json: {'; '.join(problems[:3])}{more}")
    return {name: torch.cat([tensors[part] for part in names]) for name, names in parts.items()}


def _adapt(weights: dict[str, Tensor], cosine_first: bool, ve: bool) -> None:
    """Change what differs by more than names: the order of the waves, and the sign of a VE network's output."""
    if cosine_first and not ve:
        cosine, sine = weights["time.1.weight"].chunk(2, dim=1)
        weights["time.1.weight"] = torch.cat([sine, cosine], dim=1)
    if ve:
        for name in weights:
            if name.startswith("head.") or ".to_picture." in name:
                weights[name] = -weights[name]


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
    y = torch.zeros(2, dtype=torch.long) if model.config.num_class_embeds else None
    with torch.no_grad():
        theirs = model.eval().float()(0.5 * x + 0.5 if ve else x, label, class_labels=y).sample
        ours = network.eval()(x, label.log() if ve else label, y)
    if ve:
        theirs = -theirs * label[:, None, None, None]
    return float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))


@LOADERS.register("diffusers")
class DiffusersFolder(Loader):
    """A local folder of diffusers: a pipeline of ``UNet2DModel`` and scheduler, or the model with a scheduler by it.

    Of what the scheduler says of sampling alone, its variance and ``clip_sample`` become options of our samplers; the
    rest is kept in ``source`` and not acted on.
    """

    def recognises(self, path: Path) -> bool:
        if (path / "model_index.json").is_file():
            return True
        config = path / "config.json"
        content = read_json(config) if config.is_file() else None
        return isinstance(content, dict) and "_class_name" in content

    def load(self, path: Path, config: dict[str, Any] | None) -> Pretrained:
        folder, schedule = _folders(path)
        model = _model(folder / "config.json")
        scheduler = _read_config(schedule, "the configuration of a scheduler")
        shape = _shape(folder / "config.json", model, config)
        options = _options(folder / "config.json", model)
        diffusion = _diffusion(schedule, scheduler, options["embedding"] == "fourier")
        ve = diffusion["sde"]["name"] == "ve"
        options["input_scale"], options["input_shift"] = INPUT[ve, model["center_input_sample"]]
        with torch.device("meta"):
            network: nn.Module = _build(folder / "config.json", NETWORKS, "unet2d", shape=shape, **options)
        weights = _translate(folder / WEIGHTS, _read_weights(folder / WEIGHTS), network.state_dict(), options)
        _adapt(weights, model["flip_sin_to_cos"], ve)
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
        clips = scheduler.get("clip_sample", scheduler["_class_name"] in ("DDPMScheduler", "DDIMScheduler"))
        clip = scheduler.get("clip_sample_range", 1.0) if clips else 0.0
        require_float(f"{schedule}: clip_sample_range", clip, 0.0)
        return Pretrained(found, weights, None, 0, source, float(clip))
