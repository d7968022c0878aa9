"""What files of guided and improved diffusion do not say: --config=configs/guided_diffusion.py:VARIANT.

    imagenet64, imagenet128, imagenet256, imagenet512, lsun256            P. Dhariwal, A. Nichol 2021, arXiv:2105.05233
    improved-imagenet64, improved-imagenet64-cond, improved-cifar10, improved-lsun256
                                                                          A. Nichol, P. Dhariwal 2021, arXiv:2102.09672

Size of pictures, heads of attention, schedule and number of steps, how the time is told; the rest is in the weights.
"""

from ml_collections import ConfigDict

from sde_diffusion.config import paper_config
from sde_diffusion.errors import require

# size of pictures, heads, width of a head, steps, schedule, whether the index is told out of 1000
PUBLISHED = {
    "imagenet64": (64, 0, 64, 1000, "cosine", False),
    "imagenet128": (128, 4, 0, 1000, "linear", False),
    "imagenet256": (256, 0, 64, 1000, "linear", False),
    "imagenet512": (512, 0, 64, 1000, "linear", False),
    "lsun256": (256, 0, 64, 1000, "linear", False),
    "improved-imagenet64": (64, 4, 0, 4000, "cosine", True),
    "improved-imagenet64-cond": (64, 4, 0, 4000, "cosine", False),
    "improved-cifar10": (32, 4, 0, 4000, "cosine", True),
    "improved-lsun256": (256, 1, 0, 1000, "linear", False),
}
VARIANTS = list(PUBLISHED)


def get_config(variant: str = "imagenet256") -> ConfigDict:
    require(variant in VARIANTS, "variant", variant, f"one of {', '.join(VARIANTS)}")
    size, heads, width, steps, schedule, rescaled = PUBLISHED[variant]
    config = paper_config()
    config.data.name = "image_folder"
    config.data.image_folder.image_size = size
    config.network.name = "unet2d"
    # Only the network of ImageNet at 64×64 keeps queries, keys and values of all heads together.
    config.network.unet2d.update(heads=heads, head_width=width, heads_first=variant != "imagenet64")
    config.sde.name = "ddpm"
    config.sde.ddpm.update(schedule=schedule, num_train_steps=steps)
    if schedule == "linear":
        config.sde.ddpm.update(beta_first=0.1 / steps, beta_last=20.0 / steps)
    config.denoiser.noise_label.name = "discrete"
    config.denoiser.noise_label.discrete.num_train_steps = steps
    config.denoiser.noise_label.discrete.scale = 1000.0 / steps if rescaled else 1.0
    config.objective.denoising.times.name = "discrete"
    config.objective.denoising.times.discrete.num_train_steps = steps
    config.denoiser.thresholding.name = "static"
    config.sampler.name = "ancestral"
    config.sampler.ancestral.update(grid="indices", num_steps=250)
    return config
