"""What the general U-Net is made of: residual blocks, attention, changes of size, levels of both ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.errors import require
from sde_diffusion.networks.layers import (
    ConvDouble,
    GroupNorm,
    conv,
    double,
    fir_double,
    fir_halve,
    halve,
    silu,
    zero_init,
)

LEVELS = ("conv", "conv+attention", "block", "block+attention", "fir", "fir+attention")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": silu, "gelu": F.gelu, "mish": F.mish, "relu": F.relu}


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share.

    Attributes:
        code_width: size of the time code.
        groups: groups of every normalisation; 0 for min(channels/4, 32).
        eps: what a normalisation adds to the variance.
        activation: one of ``ACTIVATIONS``.
        scale_shift: the code scales and shifts the normalised features, instead of being added before.
        dropout: probability of dropping a feature.
        head_width: channels of one attention head; 0 for one head of them all.
        divisor: of the residual sums.
    """

    code_width: int
    groups: int
    eps: float
    activation: str
    scale_shift: bool
    dropout: float
    head_width: int
    divisor: float = 1.0

    def norm(self, channels: int, groups: int = 0) -> nn.GroupNorm:
        """Return the normalisation of so many channels, in ``groups`` groups or those of the style."""
        groups = groups or self.groups or max(1, min(channels // 4, 32))
        require(channels % groups == 0, "groups", groups, f"a divisor of {channels} channels")
        return GroupNorm(groups, channels, eps=self.eps)


def _mix(x: Tensor, h: Tensor, divisor: float) -> Tensor:
    return x + h if divisor == 1.0 else (x + h) / divisor


class Block(nn.Module):
    """Two convolutions with normalisation and time code in a residual sum: (B, in, H, W) → (B, out, H', W').

        h = conv(r(act(norm(x))));  h = norm(h + dense(code));  out = (skip(r(x)) + conv₀(dropout(act(h))))/divisor

    with r the change of size, if any. conv₀ starts at zero.

    Args:
        in_channels, out_channels: features before and after.
        style: what blocks share.
        resample: r.
        project: x passes a 1×1 convolution though the channels stay.
        groups_in: groups of the first normalisation, where they are not the style's.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: Style,
        resample: Callable[[Tensor], Tensor] | None = None,
        project: bool = False,
        groups_in: int = 0,
    ) -> None:
        super().__init__()
        self.norm_in = style.norm(in_channels, groups_in)
        self.conv_in = conv(in_channels, out_channels)
        self.code = nn.Linear(style.code_width, (2 if style.scale_shift else 1) * out_channels)
        self.norm_out = style.norm(out_channels)
        self.dropout = nn.Dropout(style.dropout)
        self.conv_out = zero_init(conv(out_channels, out_channels))
        projected = project or in_channels != out_channels
        self.skip = conv(in_channels, out_channels, kernel=1) if projected else nn.Identity()
        self.activation, self.resample = ACTIVATIONS[style.activation], resample
        self.scale_shift, self.divisor = style.scale_shift, style.divisor

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.activation(self.norm_in(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv_in(h)
        shift = self.code(code)[:, :, None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm_out(h) * (1.0 + scale) + shift
        else:
            h = self.norm_out(h + shift)
        h = self.conv_out(self.dropout(self.activation(h)))
        return _mix(self.skip(x), h, self.divisor)


class Attention(nn.Module):
    """Self-attention of all pixels in a residual sum: (B, C, H, W) → (B, C, H, W). The last projection starts at zero.

    Args:
        channels: C; where the heads' width does not divide it, the heads are narrower together.
        style: what blocks share.
        groups: groups of the normalisation, where they are not the style's; None for no normalisation.
    """

    def __init__(self, channels: int, style: Style, groups: int | None = 0) -> None:
        super().__init__()
        self.head_width = style.head_width or channels
        self.heads = channels // self.head_width
        require(self.heads > 0, "head_width", self.head_width, f"at most {channels}, the channels that are attended")
        self.norm = nn.Identity() if groups is None else style.norm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * self.heads * self.head_width)
        self.out = zero_init(nn.Linear(self.heads * self.head_width, channels))
        self.divisor = style.divisor

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).mT  # (B, HW, C)
        q, k, v = self.qkv(pixels).unflatten(2, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)  # (B, heads, HW, head_width)
        h = self.out(attended.transpose(1, 2).flatten(2)).mT.reshape(x.shape)
        return _mix(x, h, self.divisor)


class ConvDown(nn.Module):
    """Halve the sides by a convolution of stride 2, with zeros all around or (``padding`` 0) to the right and below.

    The time code is not read; it is there because a block in this place does.
    """

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.padding = padding

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        out: Tensor = self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))
        return out


def _read_kind(kind: str, style: Style) -> tuple[str, bool, Style]:
    """Return how a level changes its size, whether it attends, and the style of its blocks."""
    resample, _, attention = kind.partition("+")
    own = replace(style, groups=0, divisor=math.sqrt(2.0)) if resample == "fir" else style
    return resample, bool(attention), own


class Down(nn.Module):
    """One level on the way down: blocks, and then, unless it is the last, half the size.

    Args:
        kind: one of ``LEVELS``.
        in_channels, out_channels: (B, in, H, W) → (B, out, H/2, W/2).
        picture_channels: channels of the picture that a "fir" level carries along at its own size.
        num_blocks: residual blocks.
        style: what blocks share.
        padding: of :class:`ConvDown`.
        last: no change of size.
    """

    def __init__(
        self,
        kind: str,
        in_channels: int,
        out_channels: int,
        picture_channels: int,
        num_blocks: int,
        style: Style,
        padding: int,
        last: bool,
    ) -> None:
        super().__init__()
        resample, attention, style = _read_kind(kind, style)
        fir = resample == "fir"
        blocks = [Block(out_channels if i else in_channels, out_channels, style) for i in range(num_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(
            [Attention(out_channels, style, 32 if fir else 0) if attention else nn.Identity() for _ in blocks]
        )
        self.resample: nn.Module | None = None
        self.from_picture = conv(picture_channels, out_channels, kernel=1) if fir and not last else None
        if not last and resample == "conv":
            self.resample = ConvDown(out_channels, padding)
        elif not last:
            self.resample = Block(out_channels, out_channels, style, fir_halve if fir else halve, project=fir)

    def forward(self, h: Tensor, code: Tensor, picture: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the features, all states that the way up meets, and the picture at the new size."""
        states = []
        for block, attention in zip(self.blocks, self.attention, strict=True):
            h = attention(block(h, code))
            states.append(h)
        if self.resample is not None:
            h = self.resample(h, code)
            if self.from_picture is not None:
                picture = fir_halve(picture)
                h = self.from_picture(picture) + h
            states.append(h)
        return h, states, picture


class Up(nn.Module):
    """One level on the way up: blocks that meet the states of the way down, then, unless it is last, twice the size.

    Args:
        kind: one of ``LEVELS``; a "fir" level adds what it sees of the picture, and attends once, after its blocks.
        in_channels, out_channels: (B, in, H, W) → (B, out, 2H, 2W).
        met_channels: channels of the states, the next one to be met first.
        picture_channels: channels of the picture.
        style: what blocks share.
        last: no change of size.
    """

    def __init__(
        self,
        kind: str,
        in_channels: int,
        out_channels: int,
        met_channels: Sequence[int],
        picture_channels: int,
        style: Style,
        last: bool,
    ) -> None:
        super().__init__()
        resample, attention, style = _read_kind(kind, style)
        fir = resample == "fir"
        blocks, attentions = [], []
        for i, met in enumerate(met_channels):
            below = out_channels if i else in_channels
            # Not a quarter of the sum: so it is in the networks that were trained.
            groups = min(below + met // 4, 32) if fir and attention else 0
            blocks.append(Block(below + met, out_channels, style, groups_in=groups))
            attends = attention and not (fir and i + 1 < len(met_channels))
            attentions.append(Attention(out_channels, style, 32 if fir else 0) if attends else nn.Identity())
        self.blocks, self.attention = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.resample: nn.Module | None = None
        self.picture_norm = style.norm(out_channels) if fir and not last else None
        self.to_picture = zero_init(conv(out_channels, picture_channels)) if fir and not last else None
        if not last and resample == "conv":
            self.resample = ConvDouble(out_channels)
        elif not last:
            self.resample = Block(out_channels, out_channels, style, fir_double if fir else double, project=fir)

    def forward(
        self, h: Tensor, code: Tensor, states: list[Tensor], picture: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the features and the picture so far; takes the last of ``states`` away."""
        for block, attention in zip(self.blocks, self.attention, strict=True):
            h = attention(block(torch.cat([h, states.pop()], dim=1), code))
        picture = None if picture is None else fir_double(picture)
        if self.picture_norm is not None and self.to_picture is not None:
            seen = self.to_picture(silu(self.picture_norm(h)))
            picture = seen if picture is None else picture + seen
        return (h if self.resample is None else self.resample(h, code)), picture


class Middle(nn.Module):
    """A block, attention if asked for, a block: (B, C, H, W) → (B, C, H, W)."""

    def __init__(self, channels: int, style: Style, attention: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(channels, channels, style) for _ in range(2)])
        self.attention = attention

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        out: Tensor = self.blocks[1](self.attention(self.blocks[0](h, code)), code)
        return out
