"""Loaders of other projects' weights, by name."""

from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained
from sde_diffusion.training.loaders.diffusers_folder import DiffusersFolder

__all__ = ["LOADERS", "DiffusersFolder", "Loader", "Pretrained"]
