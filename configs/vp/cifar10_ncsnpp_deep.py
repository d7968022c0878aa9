"""NCSN++ deep on CIFAR-10 with the VP SDE, continuous times; 107.5 million parameters."""

from ml_collections import ConfigDict

from sde_diffusion.config import paper_config


def get_config() -> ConfigDict:
    config = paper_config()
    config.sde.name = "vp"
    config.network.name = "ncsnpp"
    config.network.ncsnpp.num_blocks = 8
    config.training.num_steps = 950_000
    return config
