"""The blocks that U-Nets are made of: the residual block and the attention, one of each for all of them.

What differs from network to network is the same all through one, and is told by a :class:`Style`.

References:
    J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239, Appendix B.
    Y. Song et al., 2021, arXiv:2011.13456, Appendix H (residual sums scaled by 1/√2, blocks that resample).
    P. Dhariwal, A. Nichol, 2021, arXiv:2105.05233, Section 3 (heads of fixed width, scale and shift by the time code).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.networks.layers import ACTIVATIONS, GRIDS, Convolution, conv, group_norm, zero_init


@dataclass(frozen=True, kw_only=True)
class Style:
    """What all blocks of a network share.

    Attributes:
        code_width: size of the time code.
        dropout: probability of dropping a feature.
        scale: of the residual sums, such as 1/√2.
        groups: groups of every normalisation; 0 for as many as ``group_size`` allows, see
            :func:`~sde_diffusion.networks.layers.group_norm`.
        group_size: channels that a group has at least, where ``groups`` does not say.
        eps: what a normalisation adds to the variance.
        activation: one of ``ACTIVATIONS``.
        scale_shift: the code scales and shifts the normalised features, instead of being added before.
        head_width: channels of one attention head; 0 for one head of them all.
        heads: number of attention heads, in the place of their width; 0 for ``head_width``.
        heads_first: the queries, keys and values of one head lie side by side, not those of all heads.
        dense: attention keeps its weights as matrices, not as 1×1 convolutions: one function, two forms of checkpoints.
        dims: number of sides of what is convolved: 1 for series, 2 for images, 3 for volumes.

    Raises:
        InputError: if one is out of range.
    """

    code_width: int
    dropout: float = 0.0
    scale: float = 1.0
    groups: int = 0
    group_size: int = 4
    eps: float = 1e-6
    activation: str = "silu"
    scale_shift: bool = False
    head_width: int = 0
    heads: int = 0
    heads_first: bool = False
    dense: bool = False
    dims: int = 2

    def __post_init__(self) -> None:
        require_int("code_width", self.code_width, 1)
        require_float("dropout", self.dropout, 0.0, 1.0)
        require_int("groups", self.groups, 0)
        require_float("eps", self.eps, 0.0, open_low=True)
        require(self.activation in ACTIVATIONS, "activation", self.activation, f"one of {', '.join(ACTIVATIONS)}")
        require_int("head_width", self.head_width, 0)
        require_int("heads", self.heads, 0)
        require(self.dims in GRIDS, "dims", self.dims, "1, 2 or 3")

    def conv(self, in_channels: int, out_channels: int, kernel: int = 3) -> Convolution:
        """Return a convolution over as many sides as there are."""
        return conv(in_channels, out_channels, kernel, self.dims)

    def norm(self, channels: int, groups: int = 0) -> nn.GroupNorm:
        """Return the normalisation of so many channels, in ``groups`` groups or those of the style."""
        return group_norm(channels, groups or self.groups, self.group_size, self.eps)


def _mix(x: Tensor, h: Tensor, scale: float) -> Tensor:
    return x + h if scale == 1.0 else (x + h) * scale


class Dense(nn.Linear):
    """A dense layer on the channels of every pixel: (B, C, *sides) → (B, K, *sides)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(2).mT).mT.reshape(len(x), self.out_features, *x.shape[2:])


class Attention(nn.Module):
    """Self-attention of all pixels in a residual sum: (B, C, *sides) → (B, C, *sides), sides (L), (H, W) or (D, H, W).

        q, k, v = qkv(norm(x));  out = (x + out₀(softmax(q kᵀ/√d) v)) · scale

    with d channels a head. out₀ starts at zero.

    Args:
        channels: C; where the heads' width does not divide it, the heads are narrower together.
        style: what blocks share.
        groups: groups of the normalisation, where they are not the style's; None for no normalisation.
    """

    def __init__(self, channels: int, style: Style, groups: int | None = 0) -> None:
        super().__init__()
        divides = not style.heads or channels % style.heads == 0
        require(divides, "heads", style.heads, f"a divisor of {channels}, the channels that are attended")
        width = channels // style.heads if style.heads else style.head_width or channels
        self.heads = channels // width
        require(self.heads > 0, "head_width", width, f"at most {channels}, the channels that are attended")
        inner = self.heads * width
        self.norm = nn.Identity() if groups is None else style.norm(channels, groups)
        self.qkv = Dense(channels, 3 * inner) if style.dense else style.conv(channels, 3 * inner, kernel=1)
        self.out = zero_init(Dense(inner, channels) if style.dense else style.conv(inner, channels, kernel=1))
        self.scale, self.heads_first = style.scale, style.heads_first

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.qkv(self.norm(x)).flatten(2).mT  # (B, pixels, 3 · heads · d)
        if self.heads_first:
            q, k, v = pixels.unflatten(2, (self.heads, 3, -1)).transpose(1, 2).unbind(3)
        else:
            q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in pixels.chunk(3, dim=2))
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, pixels, d)
        h = attended.transpose(1, 2).flatten(2).mT.reshape(len(x), -1, *x.shape[2:])
        return _mix(x, self.out(h), self.scale)


class ResBlock(nn.Module):
    """Two convolutions with normalisation and time code in a residual sum, then attention if asked for.

        h = conv(r(act(norm(x))));  h = norm(h + dense(code));  out = (skip(r(x)) + conv₀(dropout(act(h)))) · scale

    with r the change of size, if any. conv₀ starts at zero. Where the channels change, x passes a 1×1 convolution.

    Args:
        in_channels, out_channels: (B, in, *sides) → (B, out, *sides'), where r changes the sides.
        style: what blocks share.
        attention: whether :class:`Attention` follows.
        resample: r.
        project: x passes a 1×1 convolution though the channels stay.
        groups_in: groups of the first normalisation, where they are not the style's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: Style,
        attention: bool = False,
        resample: Callable[[Tensor], Tensor] | None = None,
        project: bool = False,
        groups_in: int = 0,
    ) -> None:
        super().__init__()
        self.norm_in = style.norm(in_channels, groups_in)
        self.conv_in = style.conv(in_channels, out_channels)
        self.code = nn.Linear(style.code_width, (2 if style.scale_shift else 1) * out_channels)
        self.norm_out = style.norm(out_channels)
        self.dropout = nn.Dropout(style.dropout)
        self.conv_out = zero_init(style.conv(out_channels, out_channels))
        projected = project or in_channels != out_channels
        self.skip = style.conv(in_channels, out_channels, kernel=1) if projected else nn.Identity()
        self.attention = Attention(out_channels, style) if attention else nn.Identity()
        self.activation, self.resample = ACTIVATIONS[style.activation], resample
        self.scale_shift, self.scale, self.sides = style.scale_shift, style.scale, style.dims * (None,)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.activation(self.norm_in(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv_in(h)
        shift = self.code(code)[(..., *self.sides)]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm_out(h) * (1.0 + scale) + shift
        else:
            h = self.norm_out(h + shift)
        h = self.conv_out(self.dropout(self.activation(h)))
        out: Tensor = self.attention(_mix(self.skip(x), h, self.scale))
        return out
