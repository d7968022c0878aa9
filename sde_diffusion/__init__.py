"""Score-based diffusion models as stochastic differential equations.

A forward SDE gives α(t) and σ(t); a denoiser gives one prediction with several views; a sampler (package ``samplers``)
turns a denoiser and a time grid into samples.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sde_diffusion import guidance
from sde_diffusion.analytic import Empirical, Gaussian, GaussianMixture, Law
from sde_diffusion.bounds import VariationalBound, continuous_bound, discrete_bound
from sde_diffusion.brownian import BrownianPath
from sde_diffusion.data import Dataset
from sde_diffusion.denoisers import AbstractDenoiser, Denoiser
from sde_diffusion.errors import InputError
from sde_diffusion.labels import NoiseLabel
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.likelihood import ErrorBudget, LikelihoodResult, bits_per_dim, log_likelihood
from sde_diffusion.noise import NoiseStream
from sde_diffusion.objectives import DenoisingScoreMatching, Objective
from sde_diffusion.predictions import Prediction
from sde_diffusion.reverse import forward_posterior
from sde_diffusion.sdes import SDE, VESDE, VPSDE, CosineVPSDE, DDPMChain, SubVPSDE

if TYPE_CHECKING:
    from sde_diffusion.pretrained import load_pretrained
    from sde_diffusion.runs import Run, fit, open_run

__version__ = "0.1.0"

__all__ = [
    "SDE",
    "VESDE",
    "VPSDE",
    "AbstractDenoiser",
    "BrownianPath",
    "CosineVPSDE",
    "DDPMChain",
    "Dataset",
    "Denoiser",
    "DenoisingScoreMatching",
    "Empirical",
    "ErrorBudget",
    "Gaussian",
    "GaussianMixture",
    "InputError",
    "Law",
    "LikelihoodResult",
    "NoiseLabel",
    "NoiseLevel",
    "NoiseStream",
    "Objective",
    "Prediction",
    "Run",
    "SubVPSDE",
    "VariationalBound",
    "__version__",
    "bits_per_dim",
    "continuous_bound",
    "discrete_bound",
    "fit",
    "forward_posterior",
    "guidance",
    "load_pretrained",
    "log_likelihood",
    "open_run",
]


_ON_TOP = {
    "load_pretrained": "sde_diffusion.pretrained",
    **dict.fromkeys(("Run", "fit", "open_run"), "sde_diffusion.runs"),
}


def __getattr__(name: str) -> Any:
    # They stand on everything else, samplers too, which themselves import this package: only when they are asked for.
    if name in _ON_TOP:
        return getattr(import_module(_ON_TOP[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
