"""DDPM's U-Net on CIFAR-10 with NCSN's 1,000 noise levels of the VE SDE; 35.2 million parameters.

Data are in [−1, 1]: noise levels are twice those of the paper, whose data are in [0, 1]. The smallest level, at t = 0,
is left out.
"""

from ml_collections import ConfigDict

from sde_diffusion.config import paper_config


def get_config() -> ConfigDict:
    config = paper_config()
    config.sde.name = "ve"
    config.sde.ve.sigma_min = 0.02
    config.sde.ve.sigma_max = 100.0
    config.network.name = "ddpm"
    config.denoiser.noise_label.name = "reversed"
    config.loss.times.name = "discrete"
    config.loss.times.discrete.num_train_steps = 999
    config.training.ema_decay = 0.999
    config.sampler.name = "pc"
    config.sampler.pc.num_steps = 1000
    return config
