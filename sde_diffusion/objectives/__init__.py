"""Objectives: what training makes small, one a file, and the parts that they are made of."""

from sde_diffusion.objectives.base import OBJECTIVES, Objective, as_denoiser
from sde_diffusion.objectives.denoising import DenoisingScoreMatching
from sde_diffusion.objectives.times import TIMES, TimeDistribution
from sde_diffusion.objectives.weightings import WEIGHTINGS, Weighting

__all__ = [
    "OBJECTIVES",
    "TIMES",
    "WEIGHTINGS",
    "DenoisingScoreMatching",
    "Objective",
    "TimeDistribution",
    "Weighting",
    "as_denoiser",
]
