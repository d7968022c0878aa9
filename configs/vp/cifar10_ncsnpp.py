"""NCSN++ on CIFAR-10 with the VP SDE, continuous times; 62.7 million parameters."""

from ml_collections import ConfigDict

from sde_diffusion.config import paper_config


def get_config() -> ConfigDict:
    config = paper_config()
    config.sde.name = "vp"
    config.network.name = "ncsnpp"
    config.network.ncsnpp.num_blocks = 4
    return config
