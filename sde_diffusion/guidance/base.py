"""The table of guidance: wrappers of a denoiser that a configuration chooses by name, for sampling alone."""

from __future__ import annotations

from sde_diffusion.denoisers import Wrapper
from sde_diffusion.registry import Registry

GUIDANCE: Registry[Wrapper] = Registry("guidance")
"""Wrappers by name: each takes the denoiser, and options with defaults."""
