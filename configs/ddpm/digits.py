"""DDPM as published, on digits: the discrete chain, ε-prediction, L_simple at the 1,000 indices, ancestral sampling."""

from ml_collections import ConfigDict

from sde_diffusion.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.sde.name = "ddpm"
    config.denoiser.prediction = "eps"
    config.denoiser.noise_label.name = "discrete"
    config.loss.times.name = "discrete"
    config.loss.weighting.name = "simple"
    config.sampler.name = "ancestral"
    config.sampler.ancestral.grid = "indices"
    config.sampler.ancestral.num_steps = 1000
    config.sampler.ancestral.variance = "beta"
    return config
