"""Trained weights of other projects, and our own: each file reads one kind and registers itself."""

from sde_diffusion.training.loaders import (  # noqa: F401  (each registers itself)
    diffusers_folder,
    guided_diffusion,
    lucidrains,
    own,
    score_sde,
    state_dict,
)
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained

__all__ = ["LOADERS", "Loader", "Pretrained"]
