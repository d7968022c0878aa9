"""The network and the loader of diffusers' folders: the same weights give the same output, and all else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
from sde_diffusion import config as configuration
from sde_diffusion.errors import InputError
from sde_diffusion.networks import UNet2D
from sde_diffusion.networks.unet2d import average_down, fir_down, fir_up
from sde_diffusion.training.loaders import LOADERS, Pretrained
from sde_diffusion.training.loaders.diffusers_folder import CHAINS, MODEL, WEIGHTS

diffusers = pytest.importorskip("diffusers")

PLAIN: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
FIR: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D"),
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
    "mid_block_scale_factor": 2.0**0.5,
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention everywhere": {"down_block_types": ("AttnDownBlock2D",) * 2, "up_block_types": ("AttnUpBlock2D",) * 2},
    "attention nowhere": {
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "add_attention": False,
    },
    "attention on one way": {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D",) * 2,
    },
    "padding 0, DDPM's embedding": {"downsample_padding": 0, "freq_shift": 1, "flip_sin_to_cos": False},
    "resampled in blocks": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
    },
    "resampled in blocks that attend": {
        "down_block_types": ("AttnDownBlock2D",) * 2,
        "up_block_types": ("AttnUpBlock2D",) * 2,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
    },
    "scale and shift, middle normalised": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "one head": {"attention_head_dim": None, "dropout": 0.3, "act_fn": "gelu"},
    "heads that leave channels over": {"attention_head_dim": 5, "act_fn": "mish", "mid_block_scale_factor": 1.7},
    "no middle": {"mid_block_type": None, "time_embedding_dim": 24, "act_fn": "relu"},
    "three levels": {
        "block_out_channels": (8, 16, 12),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "UNetResDownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    },
    "one level, wide pictures": {
        "sample_size": (4, 6),
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "classes": {"num_class_embeds": 5, "act_fn": "mish"},
    "centred": {"center_input_sample": True},
    "FIR": FIR,
    "FIR, three levels": {
        **FIR,
        "block_out_channels": (32, 64, 32),
        "layers_per_block": 2,
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "center_input_sample": True,
    },
    "FIR down, plain up": {
        **FIR,
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
        "resnet_time_scale_shift": "scale_shift",
    },
    "FIR up, plain down": {**FIR, "down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 8},
}
BOTH = [(name, e) for name in MODELS for e in ("positional", "fourier")]


def random_model(**options: Any) -> nn.Module:
    """A model of theirs with random weights everywhere, whose output has size 1 or so."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**{**PLAIN, **options})
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:  # the frequencies stay
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def saved(path: Path, model: nn.Module, scheduler: Any = None, **options: Any) -> Path:
    """A pipeline folder."""
    fourier = model.config.time_embedding_type == "fourier"
    if scheduler is None:
        scheduler = (diffusers.ScoreSdeVeScheduler if fourier else diffusers.DDPMScheduler)(**options)
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(path)
    return path


def load(path: Path, **options: Any) -> Pretrained:
    assert LOADERS.names() == ["diffusers"]
    loader = LOADERS.build("diffusers")
    assert loader.recognises(path)
    return loader.load(path, **options)


def built(pretrained: Pretrained) -> tuple[ConfigDict, sd.Denoiser]:
    """The run's configuration and denoiser, by the way that every command takes."""
    found = json.loads(json.dumps(pretrained.config))
    shape = tuple(found.pop("data")["shape"])
    config = configuration.default_config()
    configuration._merge(config, configuration._tuples(found), Path("found"), "")
    network = configuration.build_network(config, shape)
    network.load_state_dict(pretrained.weights)
    return config, configuration.build_denoiser(config, network.eval().requires_grad_(False))


def pictures(model: nn.Module, count: int = 3) -> Tensor:
    size = model.config.sample_size
    sides = (size, size) if isinstance(size, int) else size
    return torch.randn(count, model.config.in_channels, *sides, generator=torch.Generator().manual_seed(1))


def relative(a: Tensor, b: Tensor) -> float:
    assert b.norm() > 0.1
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("name", "embedding"), BOTH)
def test_same_weights_same_eps(name: str, embedding: str, tmp_path: Path) -> None:
    """In fp32 to what the loader promises, by its own check, and to rounding in float64 through the run's denoiser.

    (There is more than rounding between the two where waves of cos 2π w log σ are told log σ from float64: their angles
    reach thousands. Both are told the very same number in the check.)
    """
    model = random_model(**MODELS[name], time_embedding_type=embedding)
    pretrained = load(saved(tmp_path, model))
    assert pretrained.source["difference"] <= 1e-5
    _, denoiser = built(pretrained)
    denoiser.net.double()
    model.double()
    x = pictures(model).double()
    y = {"y": torch.tensor([0, 4, 2])} if model.config.num_class_embeds else {}
    labels = {"class_labels": y["y"]} if y else {}
    with torch.no_grad():
        if embedding == "positional":
            index = torch.tensor([0, 17, 999])
            theirs, t = model(x, index, **labels).sample, (index.double() + 1.0) / 1000.0
        else:  # their x = (ours + 1)/2 and σ = ours/2
            t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
            sigma = 0.5 * denoiser.sde.sigma(t)
            theirs = -sigma[:, None, None, None] * model(0.5 * x + 0.5, sigma, **labels).sample
        print(pretrained.source["difference"], relative(denoiser(x, t, **y).eps, theirs))
        assert relative(denoiser(x, t, **y).eps, theirs) <= 1e-5


def test_ddpm_of_cifar10_has_its_size() -> None:
    with torch.device("meta"):
        network = UNet2D(
            (3, 32, 32),
            widths=(128, 256, 256, 256),
            down=("conv", "conv+attention", "conv", "conv"),
            up=("conv", "conv", "conv+attention", "conv"),
            head_width=0,
            padding=0,
            eps=1e-6,
        )
    assert sum(p.numel() for p in network.parameters()) == 35_746_307
