"""The papers' networks on CIFAR-10, SDE-NETWORK: --config=configs/cifar10.py:ve-ncsnpp-deep; by default vp-ddpmpp.

    variant                  network      million parameters
    vp-, subvp-, ve-ddpm     DDPM's U-Net  35.2   vp: the discrete chain, as published; ve: NCSN's 1,000 noise levels
    vp-, subvp-ddpmpp        DDPM++        61.8   continuous times
    vp-, subvp-, ve-ncsnpp   NCSN++        62.7   continuous times; ve: Fourier features of log σ, 62.8
    …-ddpmpp-, …-ncsnpp-deep, twice as deep: 106.6, 107.5; ve: 107.6

Data are in [−1, 1]: noise levels of the VE SDE are twice those of the paper, whose data are in [0, 1], and its label is
log(σ/2). Of NCSN's levels the smallest, at t = 0, is left out.
"""

from ml_collections import ConfigDict

from sde_diffusion.config import paper_config
from sde_diffusion.errors import require

NETWORKS = {
    "vp": ("ddpm", "ddpmpp", "ddpmpp-deep", "ncsnpp", "ncsnpp-deep"),
    "subvp": ("ddpm", "ddpmpp", "ddpmpp-deep", "ncsnpp", "ncsnpp-deep"),
    "ve": ("ddpm", "ncsnpp", "ncsnpp-deep"),
}
VARIANTS = [f"{sde}-{network}" for sde, networks in NETWORKS.items() for network in networks]


def get_config(variant: str = "vp-ddpmpp") -> ConfigDict:
    require(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}")
    sde, network, *deep = variant.split("-")
    config = paper_config()
    config.sde.name = sde
    config.network.name = network
    if network != "ddpm":
        config.network[network].num_blocks = 8 if deep else 4
    if deep:
        config.training.num_steps = 950_000
    if sde == "ve":
        _noise_levels(config)
    elif variant == "vp-ddpm":
        _chain(config)
    return config


def _chain(config: ConfigDict) -> None:
    """DDPM as published: the discrete chain, trained at its 1,000 indices and sampled at all of them."""
    config.sde.name = "ddpm"
    config.denoiser.noise_label.name = "discrete"
    config.objective.denoising.times.name = "discrete"
    config.sampler.name = "ancestral"
    config.sampler.ancestral.grid = "indices"
    config.sampler.ancestral.num_steps = 1000
    config.sampler.ancestral.variance = "beta"


def _noise_levels(config: ConfigDict) -> None:
    """The VE SDE, and how each network is told its noise levels."""
    config.sde.ve.sigma_min = 0.02
    config.sde.ve.sigma_max = 100.0
    if config.network.name == "ddpm":
        config.denoiser.noise_label.name = "reversed"
        config.objective.denoising.times.name = "discrete"
        config.objective.denoising.times.discrete.num_train_steps = 999
    else:
        config.network.ncsnpp.embedding = "fourier"
        config.denoiser.noise_label.name = "log_sigma"
        config.denoiser.noise_label.log_sigma.scale = 0.5
    config.training.ema_decay = 0.999
    config.sampler.name = "pc"
    config.sampler.pc.num_steps = 1000
