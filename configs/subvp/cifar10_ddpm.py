"""DDPM's U-Net on CIFAR-10 with the sub-VP SDE, continuous times; 35.2 million parameters."""

from ml_collections import ConfigDict

from sde_diffusion.config import paper_config


def get_config() -> ConfigDict:
    config = paper_config()
    config.sde.name = "subvp"
    config.network.name = "ddpm"
    return config
