"""Samplers: each turns a denoiser and a time grid into samples.

``names()``, ``build(name, **options)``, ``config(name)`` (its options and defaults); a sampler of one's own is a frozen
dataclass under ``@samplers.register("name")``.
"""

from samplers.ancestral import Ancestral
from samplers.base import NOISES, SAMPLERS, Path, Sampler, SampleResult, report
from samplers.correctors import CORRECTORS, Corrector, LangevinCorrector
from samplers.ddim import DDIM
from samplers.deis import DEIS
from samplers.dpm_solver import DPMSolver
from samplers.edm import StochasticHeun
from samplers.euler_maruyama import EulerMaruyama
from samplers.grid import GridSampler
from samplers.heun import Heun
from samplers.ipndm import IPNDM
from samplers.langevin import AnnealedLangevin
from samplers.multistep import Multistep
from samplers.predictor_corrector import PredictorCorrector
from samplers.probability_flow import ProbabilityFlow
from samplers.restart import Restart
from samplers.reverse_diffusion import ReverseDiffusion
from samplers.sa_solver import SASolver
from samplers.scipy_ode import SciPyODE
from samplers.torchsde_solvers import TorchSDE
from samplers.unipc import UniPC

register = SAMPLERS.register
names = SAMPLERS.names
build = SAMPLERS.build
config = SAMPLERS.config
register_corrector = CORRECTORS.register

__all__ = [
    "CORRECTORS",
    "DDIM",
    "DEIS",
    "IPNDM",
    "NOISES",
    "SAMPLERS",
    "Ancestral",
    "AnnealedLangevin",
    "Corrector",
    "DPMSolver",
    "EulerMaruyama",
    "GridSampler",
    "Heun",
    "LangevinCorrector",
    "Multistep",
    "Path",
    "PredictorCorrector",
    "ProbabilityFlow",
    "Restart",
    "ReverseDiffusion",
    "SASolver",
    "SampleResult",
    "Sampler",
    "SciPyODE",
    "StochasticHeun",
    "TorchSDE",
    "UniPC",
    "build",
    "config",
    "names",
    "register",
    "register_corrector",
    "report",
]
