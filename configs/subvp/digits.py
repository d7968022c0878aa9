"""Sub-VP SDE on digits with the likelihood weighting and importance-sampled times."""

from ml_collections import ConfigDict

from sde_diffusion.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.sde.name = "subvp"
    config.loss.times.name = "importance"
    config.loss.weighting.name = "likelihood"
    return config
