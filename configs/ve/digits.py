"""VE SDE on digits: noise up to the largest distance between two digits, log σ as the time label, scaled input."""

from ml_collections import ConfigDict

from sde_diffusion.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.sde.name = "ve"
    config.sde.ve.sigma_max = 10.0
    config.denoiser.prediction = "eps"
    config.denoiser.sigma_data = 0.6
    config.denoiser.noise_label.name = "log_sigma"
    config.loss.times.name = "stratified"
    config.sampler.name = "pc"
    return config
