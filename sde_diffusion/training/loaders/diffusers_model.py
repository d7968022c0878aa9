"""The ``UNet2DModel`` of diffusers in our words: its options, the names of its weights, the weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.training.loaders.descriptions import read_config, refuse, require_known
from sde_diffusion.training.loaders.tensor_files import problems_of

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

EMA = ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
"""What the average of a training script writes among the options of its model."""

OTHERS = {
    "UNet2DConditionModel": "a network that is told a text or another sequence by cross-attention",
    "UNet3DConditionModel": "a network on videos that is told a text",
    "UNet1DModel": "a network on series with blocks of its own",
    "AutoencoderKL": "an autoencoder, which is no denoiser",
    "VQModel": "an autoencoder, which is no denoiser",
    "DiTTransformer2DModel": "a transformer on latents",
    "Transformer2DModel": "a transformer on latents",
}
"""Other models of diffusers, and what they are."""

NONE_TOO = ("mid_block_type", "downsample_type", "upsample_type", "attention_head_dim", "norm_num_groups")
"""Options that may be null though their default is not."""

KNOWN: dict[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional", "fourier"),
    "class_embed_type": (None, "timestep", "identity"),
    "mid_block_type": ("UNetMidBlock2D", None),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_padding": (0, 1),
    "act_fn": ("silu", "swish", "gelu", "mish", "relu"),
}
"""What we have of options with few values."""

TOLD = {None: "classes", "timestep": "number", "identity": "code"}
"""What the network is told beside the time, by ``class_embed_type``."""

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

NAMES = [
    (r"^time\.0\.frequencies$", "time_proj.weight"),
    (r"^time\.1\.", "time_embedding.linear_1."),
    (r"^time\.3\.", "time_embedding.linear_2."),
    (r"^classes\.", "class_embedding."),
    (r"^number\.0\.", "class_embedding.linear_1."),
    (r"^number\.2\.", "class_embedding.linear_2."),
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


def read_model(path: Path) -> dict[str, Any]:
    """Return the options of their model, all of them, each one that we have."""
    content = read_config(path, "the configuration of a UNet2DModel")
    name = content.get("_class_name")
    if name != "UNet2DModel":
        what = OTHERS.get(str(name), "a model that is not known here")
        raise refuse(path, "_class_name", name, f"{what}; expected a 'UNet2DModel'")
    content = {key: value for key, value in content.items() if key not in EMA}
    for key, value in content.items():
        if key.startswith("_"):
            continue
        if key not in MODEL:
            raise refuse(path, key, value, "not known of UNet2DModel here; take it out if it changes nothing")
        default = MODEL[key]
        kind = (int, float) if isinstance(default, (int, float)) else type(default)
        free = default is None or (value is None and key in NONE_TOO)
        if not free and not isinstance(value, kind):
            raise refuse(path, key, value, f"expected a value like {default!r}")
    model = {**MODEL, **content}
    for key, known in KNOWN.items():
        require_known(path, key, model[key], known)
    if model["out_channels"] not in (model["in_channels"], 2 * model["in_channels"]):
        expected = "not supported; expected as many as in_channels, or twice as many with a learned variance"
        raise refuse(path, "out_channels", model["out_channels"], expected)
    return model


def _levels(path: Path, model: dict[str, Any], way: str) -> tuple[str, ...]:
    """Return our kinds of the levels of one way, "down" or "up"."""
    kinds = []
    for name in model[f"{way}_block_types"]:
        plain = str(name).removeprefix("UNetRes")
        require_known(path, f"{way}_block_types", plain, list(LEVELS[way]))
        kind = LEVELS[way][plain]
        if kind == "+attention":
            resample = model[f"{way}sample_type"] or "conv"
            require_known(path, f"{way}sample_type", resample, ["conv", "resnet"])
            kind = ("conv" if resample == "conv" else "block") + kind
        kinds.append(kind)
    return tuple(kinds)


def picture_shape(path: Path, model: dict[str, Any], config: dict[str, Any] | None) -> tuple[int, ...]:
    """Return (C, H, W), from the folder and, where it does not say, from the user's ``data.shape``."""
    channels, size = model["in_channels"], model["sample_size"]
    wanted = (config or {}).get("data", {}).get("shape")
    if size is None and wanted is None:
        raise refuse(path, "sample_size", None, "expected the height and width of a picture; write them there")
    sides = list(wanted)[1:] if size is None else [size, size] if isinstance(size, int) else list(size)
    shape = (channels, *sides)
    if wanted is not None and tuple(wanted) != shape:
        key = "in_channels" if wanted[0] != channels else "sample_size"
        raise refuse(path, key, model[key], f"the model is for pictures {shape}, the data are {tuple(wanted)}")
    return shape


def network_options(path: Path, model: dict[str, Any]) -> dict[str, Any]:
    """Return the options of our network that their model has."""
    scale_shift = model["resnet_time_scale_shift"] == "scale_shift"
    fourier = model["time_embedding_type"] == "fourier"
    told = TOLD[model["class_embed_type"]]
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
        "num_classes": (model["num_class_embeds"] or 0) if told == "classes" else 0,
        "told": told,
        "learned_variance": model["out_channels"] != model["in_channels"],
    }


def _translate(
    path: Path, tensors: dict[str, Tensor], own: dict[str, Tensor], options: dict[str, Any]
) -> dict[str, Tensor]:
    """Return the weights by our names, or refuse those that do not fit."""
    parts = {name: _their_names(name, options) for name in own}
    shapes = {
        part: (tensor.shape[0] // len(parts[name]), *tensor.shape[1:])
        for name, tensor in own.items()
        for part in parts[name]
    }
    problems = problems_of(shapes, tensors)
    if problems:
        raise InputError(f"{path}: does not fit its config.json: {problems}")
    return {name: torch.cat([tensors[part] for part in names]) for name, names in parts.items()}


def old_middle(model: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the options with the normalisation that attention in the middle had up to version 0.16, if it is there.

    Since then there is none beside "scale_shift" unless ``attn_norm_num_groups`` says so, which the old ones did not.
    """
    there = "mid_block.attentions.0.group_norm.weight" in tensors
    old = there and model["attn_norm_num_groups"] is None and model["resnet_time_scale_shift"] == "scale_shift"
    groups = model["norm_num_groups"] or min(model["block_out_channels"][-1] // 4, 32)
    return {**model, "attn_norm_num_groups": groups} if old else model


def to_ours(
    path: Path,
    tensors: dict[str, Tensor],
    own: dict[str, Tensor],
    options: dict[str, Any],
    cosine_first: bool,
    score: bool,
) -> dict[str, Tensor]:
    """Return weights by our names, for a network with the state ``own``.

    Args:
        path: where they are from.
        options: of our network.
        cosine_first: the model's ``flip_sin_to_cos``.
        score: whether the network returns the score, whose sign is not that of ε.

    Raises:
        InputError: naming missing and unexpected keys and shapes that do not fit, by their names.
    """
    weights = _translate(path, tensors, own, options)
    if cosine_first and options["embedding"] == "sinusoidal":
        for name in ("time.1.weight", "number.0.weight"):
            if name in weights:
                cosine, sine = weights[name].chunk(2, dim=1)
                weights[name] = torch.cat([sine, cosine], dim=1)
    if score:
        weights = {
            name: -tensor if name.startswith("head.") or ".to_picture." in name else tensor
            for name, tensor in weights.items()
        }
    return weights
