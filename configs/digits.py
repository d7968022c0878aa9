"""Digits as the papers would have them: --config=configs/digits.py:VARIANT, one of the following, by default ddpm.

ddpm    as published: the discrete chain, ε-prediction, L_simple at the 1,000 indices, ancestral sampling
subvp   the sub-VP SDE with the likelihood weighting and importance-sampled times
flow    rectified flow: the velocity, sampled in 10 steps
ve      noise up to the largest distance between two digits, log σ as the time label, scaled input
"""

from ml_collections import ConfigDict

from sde_diffusion.config import default_config
from sde_diffusion.errors import require

VARIANTS = ["ddpm", "flow", "subvp", "ve"]


def get_config(variant: str = "ddpm") -> ConfigDict:
    require(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}")
    config = default_config()
    config.sde.name = variant
    if variant == "ddpm":
        config.denoiser.prediction = "eps"
        config.denoiser.noise_label.name = "discrete"
        config.objective.denoising.times.name = "discrete"
        config.objective.denoising.weighting.name = "simple"
        config.sampler.name = "ancestral"
        config.sampler.ancestral.grid = "indices"
        config.sampler.ancestral.num_steps = 1000
        config.sampler.ancestral.variance = "beta"
    elif variant == "flow":
        config.denoiser.prediction = "velocity"
        config.sampler.name = "ddim"
        config.sampler.ddim.num_steps = 10
    elif variant == "subvp":
        config.objective.denoising.times.name = "importance"
        config.objective.denoising.weighting.name = "likelihood"
    else:
        config.sde.ve.sigma_max = 10.0
        config.denoiser.prediction = "eps"
        config.denoiser.sigma_data = 0.6
        config.denoiser.noise_label.name = "log_sigma"
        config.objective.denoising.times.name = "stratified"
        config.sampler.name = "pc"
    return config
