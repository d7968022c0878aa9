"""DDPM++ on CIFAR-10 with the sub-VP SDE, continuous times; 61.8 million parameters."""

from ml_collections import ConfigDict

from sde_diffusion.config import paper_config


def get_config() -> ConfigDict:
    config = paper_config()
    config.sde.name = "subvp"
    config.network.name = "ddpmpp"
    config.network.ddpmpp.num_blocks = 4
    return config
