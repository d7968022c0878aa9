"""What the networks share: their registry, the check of their shape, and the layers that blocks are made of.

References:
    J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239, Appendix B.
    Y. Song et al., 2021, arXiv:2011.13456, Appendix H (DDPM++, NCSN++: min(C/4, 32) groups).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.errors import require, require_int
from sde_diffusion.networks import winograd
from sde_diffusion.registry import Registry

NETWORKS: Registry[nn.Module] = Registry("network")
"""Networks by name; each takes ``shape``, that of one example, and options with defaults, and is ``net(x, label)``.

What one can be conditioned on it says by three attributes, which the rest of the program reads:

    conditions: tuple[str, ...]  names of the keyword arguments of ``forward`` beside x and label, ("classes",) or ()
    num_classes: int             ``classes`` (B,) are whole numbers 0 … num_classes − 1; 0 where there are none
    null_class: bool             class num_classes means "no class", which is also what no ``classes`` mean; else a
                                 network with classes must be told one

All networks here have them (:class:`~sde_diffusion.networks.embeddings.ClassConditional`); one of one's own need not.
"""


def require_sizes(name: str, sizes: Sequence[int], expected: str, length: int | None = None) -> tuple[int, ...]:
    """Return whole numbers ≥ 1 as a tuple.

    Raises:
        InputError: if ``sizes`` is anything else, is empty, or has not ``length`` entries where that is given.
    """
    ok = isinstance(sizes, Sequence) and not isinstance(sizes, str) and len(sizes) > 0
    ok = ok and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in sizes)
    require(ok and length in (None, len(sizes)), name, sizes, expected)
    return tuple(sizes)


GRIDS = {1: "(channels, length)", 2: "(channels, height, width)", 3: "(channels, depth, height, width)"}
"""Shapes of examples on a grid of so many dimensions."""
OTHERS = {1: ("vectors", "mlp"), 2: ("series", "unet"), 4: ("volumes", "unet")}
"""What else a shape with so many entries may be of, and the network for it; "mlp" takes all."""


def require_grid(shape: Sequence[int], dims: Sequence[int] = (2,)) -> tuple[int, ...]:
    """Return a shape (C, *sides) as a tuple.

    Args:
        shape: of one example.
        dims: the numbers of sides that there may be, of 1, 2 and 3.

    Raises:
        InputError: if it is of another kind; names the network that takes it.
    """
    expected = " or ".join(GRIDS[n] for n in dims)
    sizes = require_sizes("shape", shape, expected)
    data, name = OTHERS.get(len(sizes), ("others", "mlp"))
    remedy = f"for {data} there is --config.network.name={name}"
    require(len(sizes) - 1 in dims, "shape", sizes, expected, remedy)
    return sizes


def require_halvable(shape: Sequence[int], levels: int, option: str) -> None:
    """Require a shape (C, *sides) whose sides can be halved once per level after the first.

    Raises:
        InputError: if they cannot; ``option`` is what names the levels.
    """
    factor = 2 ** (levels - 1)
    expected = f"sides divisible by {factor} for {levels} levels"
    require(all(side % factor == 0 for side in shape[1:]), "shape", tuple(shape), expected, f"give fewer {option}")


def require_levels(
    shape: Sequence[int], channels: int, channel_mults: Sequence[int], dims: Sequence[int] = (2,)
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Check what all U-Nets are given; returns the shape (C, *sides) and the multiples of the levels.

    Args:
        shape: of one example.
        channels: features at full size.
        channel_mults: features of each level in units of ``channels``.
        dims: the numbers of sides that there may be, see :func:`require_grid`.

    Raises:
        InputError: if one is out of range, or the sides cannot be halved often enough.
    """
    sizes = require_grid(shape, dims)
    mults = require_sizes("channel_mults", channel_mults, "one whole number of at least 1 for each level")
    require_halvable(sizes, len(mults), "channel_mults")
    require_int("channels", channels, 4)
    require(channels % 4 == 0, "channels", channels, "a multiple of 4")
    return sizes, mults


Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
Layer = TypeVar("Layer", bound=Convolution | nn.Linear)


def zero_init(layer: Layer) -> Layer:
    """Set weights and bias to zero: the branch that ends in this layer starts as if it were not there."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Conv(nn.Conv2d):
    """A convolution with a bias that takes the way with fewer multiplications where that is there and pays."""

    def forward(self, x: Tensor) -> Tensor:
        plain = self.kernel_size == (3, 3) and self.stride == self.padding == (1, 1)
        if plain and self.bias is not None and winograd.pays(x, self.weight):
            out: Tensor = winograd.convolve(x, self.weight, self.bias)
            return out
        return super().forward(x)


CONVOLUTIONS: dict[int, type[Convolution]] = {1: nn.Conv1d, 2: Conv, 3: nn.Conv3d}
"""Convolutions by the number of sides."""


def conv(in_channels: int, out_channels: int, kernel: int = 3, dims: int = 2) -> Convolution:
    """A convolution that keeps the size, with Xavier weights and no bias at first: (B, in, *sides) → (B, out, *sides).

    Args:
        in_channels, out_channels: features.
        kernel: side of the kernel, odd.
        dims: number of sides, 1, 2 or 3.
    """
    layer = zero_init(CONVOLUTIONS[dims](in_channels, out_channels, kernel, padding=kernel // 2))
    nn.init.xavier_uniform_(layer.weight)
    return layer


class GroupNorm(nn.GroupNorm):
    """Group normalisation that leaves channels-last layout where PyTorch's kernel for it is slow.

    On a CPU, with few channels a group and small pictures, it takes up to ten times as long as the plain layout's.
    """

    def forward(self, x: Tensor) -> Tensor:
        slow = x.device.type == "cpu" and x.shape[1] < 8 * self.num_groups and x.shape[2:].numel() < 1024
        return super().forward(x.contiguous() if slow and not torch.compiler.is_compiling() else x)


def group_norm(channels: int, groups: int = 0, group_size: int = 4, eps: float = 1e-6) -> nn.GroupNorm:
    """Group normalisation of so many channels.

    Args:
        channels: C.
        groups: a divisor of C; 0 for as many as divide it, but at most 32 and C/``group_size``.
        group_size: channels that a group has at least, where ``groups`` does not say.
        eps: what is added to the variance.

    Raises:
        InputError: if the groups do not divide the channels.
    """
    most = max(1, min(channels // group_size, 32))
    groups = groups or max(g for g in range(1, most + 1) if channels % g == 0)
    require(channels % groups == 0, "groups", groups, f"a divisor of {channels} channels")
    return GroupNorm(groups, channels, eps=eps)


def silu(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else needs: in place where no gradient needs it either, which saves its memory."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "gelu": F.gelu, "mish": F.mish, "relu": F.relu}
