"""One's own data of floats: --config=configs/continuous.py:VARIANT --config.data.root=FILE.npz, by default vectors.

    variant   arrays of FILE.npz  network
    vectors   (N, D)              dense layers
    series    (N, C, L)           U-Net of 1-d convolutions; L even
    volumes   (N, C, D, H, W)     U-Net of 3-d convolutions; D, H, W even

FILE.npz holds arrays train and test, or one array x, of which a tenth is held out. Each column or channel may have its
own units.
"""

from ml_collections import ConfigDict

from sde_diffusion.config import default_config
from sde_diffusion.errors import require

VARIANTS = ["vectors", "series", "volumes"]


def get_config(variant: str = "vectors") -> ConfigDict:
    require(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}")
    config = default_config()
    config.data.name = "npz"
    config.sampler.name = "heun"
    config.training.log_every = 50
    config.training.checkpoint_every = 1000
    if variant == "vectors":
        config.training.num_steps = 8000
        config.training.batch_size = 256
        config.training.learning_rate = 2e-3
        config.training.ema_decay = 0.999
    else:
        config.objective.denoising.times.name = "log_normal"  # uniform times leave the ends of series and fine detail
        config.objective.denoising.times.log_normal.mean = 0.1
        config.objective.denoising.times.log_normal.std = 1.5
        config.training.num_steps = 2400
        config.training.optimizer = "muon"
        config.training.learning_rate = 4e-3
        config.training.ema_decay = 0.995
    if variant == "volumes":
        config.network.unet.channels = 16
        config.training.batch_size = 16
    return config
