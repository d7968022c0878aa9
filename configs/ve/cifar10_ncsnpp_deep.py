"""NCSN++ deep on CIFAR-10 with the VE SDE, continuous times, Fourier features of log σ; 107.6 million parameters.

Data are in [−1, 1]: noise levels are twice those of the paper, whose data are in [0, 1], and the label is log(σ/2).
"""

from ml_collections import ConfigDict

from sde_diffusion.config import paper_config


def get_config() -> ConfigDict:
    config = paper_config()
    config.sde.name = "ve"
    config.sde.ve.sigma_min = 0.02
    config.sde.ve.sigma_max = 100.0
    config.network.name = "ncsnpp"
    config.network.ncsnpp.num_blocks = 8
    config.network.ncsnpp.embedding = "fourier"
    config.denoiser.noise_label.name = "log_sigma"
    config.denoiser.noise_label.log_sigma.scale = 0.5
    config.training.ema_decay = 0.999
    config.training.num_steps = 950_000
    config.sampler.name = "pc"
    config.sampler.pc.num_steps = 1000
    return config
