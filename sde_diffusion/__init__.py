"""Score-based diffusion models as stochastic differential equations.

A forward SDE gives α(t) and σ(t); a denoiser gives one prediction with four views; a sampler (package ``samplers``)
turns a denoiser and a time grid into samples.
"""

from sde_diffusion.analytic import Empirical, Gaussian, GaussianMixture, Law
from sde_diffusion.denoisers import Denoiser, Prediction, TimeConditioning
from sde_diffusion.errors import InputError
from sde_diffusion.losses import DenoisingScoreMatching
from sde_diffusion.noise import NoiseStream
from sde_diffusion.sdes import SDE, VESDE, VPSDE, CosineVPSDE, DDPMChain, SubVPSDE

__version__ = "0.1.0"

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "CosineVPSDE",
    "DDPMChain",
    "Denoiser",
    "DenoisingScoreMatching",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "InputError",
    "Law",
    "NoiseStream",
    "Prediction",
    "SubVPSDE",
    "TimeConditioning",
    "__version__",
]
