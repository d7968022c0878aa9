"""3×3 convolutions with half the multiplications, for sampling in float32 on a CPU.

A direct convolution runs at nearly a CPU's peak rate already: only fewer multiplications make it faster. Four
neighbours in a row are A [(G w) ∘ (B d)], with w a row of the filter and d the six values that they see: six products
instead of twelve. Summed over channels they are matrix products, one for each of the six places and row of the filter.

Along one side and four at a time, the rounding errors are no larger than those of a direct convolution; along both
sides they would be five times as large, and two at a time gain less than they cost in memory traffic.

Reference:
    A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, arXiv:1509.09308, F(4, 3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

OF_INPUT = (  # B
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
OF_WEIGHTS = (  # G
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
OF_OUTPUT = (  # A
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)
MIN_CHANNELS, MIN_PIXELS = 128, 4096
"""From where on it pays: of fewer channels the products are small, fewer pixels do not pay for G w."""
CHUNK = 1 << 18
"""Numbers of the input at a time, few enough that what lies between the products stays in the cache."""


def pays(x: Tensor, weight: Tensor) -> bool:
    """Return whether :func:`convolve` can take ``x`` (B, C, H, W) and is faster there than a direct convolution.

    Weights in the plain layout have it nowhere: it makes channels last.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.shape[3] % 4 == 0
        and min(weight.shape[:2]) >= MIN_CHANNELS
        and x.shape[0] * x.shape[2] * x.shape[3] >= MIN_PIXELS
    )


# An operation of its own: a compiler would unroll its loop.
@torch.library.custom_op(
    "sde_diffusion::winograd", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor bias) -> Tensor"
)
def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve, zeros around the picture: (B, C, H, W), weight (K, C, 3, 3), bias (K,) → (B, K, H, W) channels last.

    The width is a multiple of 4.
    """
    _, channels, height, width = x.shape
    places = len(OF_INPUT)
    factors = x.new_tensor(OF_WEIGHTS) @ weight.permute(3, 2, 1, 0).reshape(3, -1)
    factors = factors.view(places, 3, channels, -1)
    of_input, of_output = x.new_tensor(OF_INPUT), x.new_tensor(OF_OUTPUT)
    out = x.new_empty(len(x), height, width, len(weight))
    count = max(1, CHUNK // (channels * height * width))
    for rows, pixels in zip(torch.split(x.permute(2, 0, 3, 1), count, dim=1), torch.split(out, count), strict=True):
        seen = F.pad(rows, (0, 0, 1, 1, 0, 0, 1, 1)).unfold(2, 6, 4)  # (H + 2, count, W/4, C, 6)
        tiles = (of_input @ seen.permute(4, 0, 1, 2, 3).reshape(places, -1)).view(places, height + 2, -1, channels)
        sums = torch.bmm(tiles[:, :height].flatten(1, 2), factors[:, 0])
        for row in (1, 2):
            sums.baddbmm_(tiles[:, row : row + height].flatten(1, 2), factors[:, row])
        fours = (of_output @ sums.view(places, -1)).view(4, height, -1, width // 4, len(weight))
        torch.add(fours.permute(2, 1, 3, 0, 4), bias, out=pixels.view(len(pixels), height, -1, 4, len(weight)))
    return out.permute(0, 3, 1, 2)


@convolve.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[2], x.shape[3], weight.shape[0]).permute(0, 3, 1, 2)
