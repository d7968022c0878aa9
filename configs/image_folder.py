"""VP SDE on a folder of one's own pictures, 64×64, with --config.data.root=FOLDER; 22 million parameters, for a GPU.

Out of memory? --config.network.ddpmpp.checkpoint_activations=True, or a smaller --config.training.batch_size.
"""

from ml_collections import ConfigDict

from sde_diffusion.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.threads = 0
    config.data.name = "image_folder"
    config.data.image_folder.image_size = 64
    config.network.name = "ddpmpp"
    config.network.ddpmpp.channels = 96
    config.training.num_steps = 200_000
    config.training.batch_size = 64
    config.training.learning_rate = 2e-4
    config.training.warmup_steps = 5000
    config.training.beta2 = 0.999
    config.training.ema_decay = 0.9999
    config.training.flip = True
    config.training.log_every = 50
    config.training.checkpoint_every = 5000
    return config
