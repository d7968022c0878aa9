"""Networks by name: ``NETWORKS.build("unet", shape=(1, 8, 8))``; called as ``net(x, label)`` or with ``classes=``."""

from sde_diffusion.networks.layers import NETWORKS
from sde_diffusion.networks.mlp import MLP
from sde_diffusion.networks.skip_unet import DDPM, DDPMpp, NCSNpp, SkipUNet
from sde_diffusion.networks.unet import UNet
from sde_diffusion.networks.unet2d import UNet2D

__all__ = ["DDPM", "MLP", "NETWORKS", "DDPMpp", "NCSNpp", "SkipUNet", "UNet", "UNet2D"]
