"""Score-based diffusion models as stochastic differential equations.

A forward SDE gives α(t) and σ(t); a denoiser gives one prediction with several views; a sampler (package ``samplers``)
turns a denoiser and a time grid into samples.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from sde_diffusion.pretrained import load_pretrained
    from sde_diffusion.reverse import forward_posterior
    from sde_diffusion.runs import Run, fit, open_run
    from sde_diffusion.sdes import SDE, VESDE, VPSDE, CosineVPSDE, DDPMChain, FlowSDE, SubVPSDE

__version__ = "0.1.0"

# Where each name is from, imported when it is first asked for: help and version need no torch, and a command that is
# stopped while torch is read is stopped in its own words.
_FROM = {
    "analytic": ("Empirical", "Gaussian", "GaussianMixture", "Law"),
    "bounds": ("VariationalBound", "continuous_bound", "discrete_bound"),
    "brownian": ("BrownianPath",),
    "data": ("Dataset",),
    "denoisers": ("AbstractDenoiser", "Denoiser"),
    "errors": ("InputError",),
    "labels": ("NoiseLabel",),
    "levels": ("NoiseLevel",),
    "likelihood": ("ErrorBudget", "LikelihoodResult", "bits_per_dim", "log_likelihood"),
    "noise": ("NoiseStream",),
    "objectives": ("DenoisingScoreMatching", "Objective"),
    "predictions": ("Prediction",),
    "pretrained": ("load_pretrained",),
    "reverse": ("forward_posterior",),
    "runs": ("Run", "fit", "open_run"),
    "sdes": ("SDE", "VESDE", "VPSDE", "CosineVPSDE", "DDPMChain", "FlowSDE", "SubVPSDE"),
}
_MODULE_OF = {name: module for module, names in _FROM.items() for name in names}

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
    "FlowSDE",
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


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        found = getattr(import_module(f"sde_diffusion.{_MODULE_OF[name]}"), name)
        globals()[name] = found
        return found
    full = f"{__name__}.{name}"
    if not name.startswith("_") and find_spec(full) is not None:  # a module of the package
        return import_module(full)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
