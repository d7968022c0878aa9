"""Trained weights of other projects, and our own: each file reads one kind and registers itself."""

from sde_diffusion.training.loaders import diffusers_folder, own, score_sde  # noqa: F401  (each registers itself)
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained

__all__ = ["LOADERS", "Loader", "Pretrained"]
