"""DDPM on CIFAR-10 as published: the discrete chain, 1,000 ancestral steps; 35.2 million parameters."""

from ml_collections import ConfigDict

from sde_diffusion.config import paper_config


def get_config() -> ConfigDict:
    config = paper_config()
    config.sde.name = "ddpm"
    config.network.name = "ddpm"
    config.denoiser.noise_label.name = "discrete"
    config.loss.times.name = "discrete"
    config.sampler.name = "ancestral"
    config.sampler.ancestral.grid = "indices"
    config.sampler.ancestral.num_steps = 1000
    config.sampler.ancestral.variance = "beta"
    return config
