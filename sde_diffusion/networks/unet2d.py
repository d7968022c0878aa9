"""The U-Net of DDPM, NCSN++ and their descendants as it is commonly published: equal to ``UNet2DModel`` of diffusers.

Where :class:`~sde_diffusion.networks.unet.UNet` is made small, this one is made general: it computes what that model
computes from the same weights, so that its checkpoints can be loaded. Unlike ours, it keeps the state after the stem
and after each change of size for the way up, which has therefore one block a level more than the way down.

References:
    J. Ho, A. Jain, P. Abbeel, 2020, arXiv:2006.11239, Appendix B (the network). P. Dhariwal, A. Nichol, 2021,
    arXiv:2105.05233, Section 3 (heads of fixed width, residual resampling, scale and shift by the time code).
    Y. Song et al., 2021, arXiv:2011.13456, Appendix H (NCSN++: FIR resampling, the picture beside the features).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.networks.blocks import Attention, Style
from sde_diffusion.networks.embeddings import EMBEDDINGS, ClassConditional, GaussianFourier, Sinusoidal
from sde_diffusion.networks.layers import (
    ACTIVATIONS,
    NETWORKS,
    conv,
    require_grid,
    require_halvable,
    require_sizes,
    silu,
    zero_init,
)
from sde_diffusion.networks.unet2d_levels import Down, Middle, Up, require_kinds

MIDDLES = ("attention", "plain", "none")
TOLD = ("classes", "number", "code")


def _require_sides(shape: Sequence[int], widths: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """Return the channels of the picture and the features of the levels; the sides can be halved often enough."""
    sizes = require_grid(shape)
    widths = require_sizes("widths", widths, "one whole number of at least 1 for each level")
    require(widths[0] % 2 == 0 and widths[0] >= 4, "widths", widths, "an even number of at least 4 at first")
    require_halvable(sizes, len(widths), "widths")
    return sizes[0], widths


def _require_middle(middle: str, divisor: float, groups: int) -> None:
    require(middle in MIDDLES, "middle", middle, f"one of {', '.join(MIDDLES)}")
    require_float("middle_divisor", divisor, 0.0, open_low=True)
    require_int("middle_groups", groups, -1)


def _require_ends(padding: int, scale: float, shift: float) -> None:
    require(padding in (0, 1), "padding", padding, "0 or 1")
    for name, number in (("input_scale", scale), ("input_shift", shift)):
        require_float(name, number)


def _middle(width: int, style: Style, kind: str, divisor: float, groups: int) -> Middle:
    own = replace(style, scale=1.0 / divisor)
    norm = None if groups < 0 else groups
    return Middle(width, own, Attention(width, own, norm) if kind == "attention" else nn.Identity())


def _time(embedding: str, width: int, shift: float, code_width: int) -> nn.Sequential:
    """Return what makes the time code of a label: ``width`` waves, or both sines and cosines of ``width`` frequencies.

    There is no activation after the last layer: classes are added before it.
    """
    EMBEDDINGS[embedding]
    sinusoidal = embedding == "sinusoidal"
    features = width if sinusoidal else 2 * width
    waves = Sinusoidal(features, shift=shift) if sinusoidal else GaussianFourier(features)
    return nn.Sequential(waves, nn.Linear(features, code_width), nn.SiLU(), nn.Linear(code_width, code_width))


@NETWORKS.register("unet2d")
class UNet2D(ClassConditional):
    """A time-conditioned U-Net on images: x (B, C, H, W), label (B,) → (B, C, H, W); zero at first.

    The kind of a level says how it changes the size, "conv" by a convolution, "block" in a residual block, "fir" in a
    residual block with a (1, 3, 3, 1) filter while the picture is carried along at every size, and with "+attention"
    that its blocks end in attention.

    Args:
        shape: (C, H, W) of one image; H and W are halved once per level after the first.
        widths: features of each level; the first is even.
        num_blocks: residual blocks of each level on the way down; on the way up there is one more.
        down, up: kind of each level in the order in which it is passed, one of "conv", "block", "fir", alone or with
            "+attention".
        middle: "attention", "plain" or "none".
        middle_divisor: of the residual sums of the middle.
        middle_groups: groups of the normalisation before the middle's attention; 0 for ``groups``, -1 for none.
        head_width: channels of one attention head; 0 for one head of them all.
        groups: groups of the normalisations; 0 for at most min(channels/4, 32). "fir" levels have that in any case, and
            32 before attention.
        eps: what a normalisation adds to the variance.
        activation: of the blocks, "silu", "gelu", "mish" or "relu".
        scale_shift: the time code scales and shifts the normalised features, instead of being added before.
        padding: of the "conv" levels on the way down, 1 for zeros all around, 0 for zeros to the right and below.
        dropout: probability of dropping a feature inside a block.
        embedding: how the label is read, "sinusoidal" (any label) or "fourier" (label log σ).
        frequency_shift: the sinusoidal frequencies are 10⁴^(−i/(n − shift)) for i = 0 … n − 1; 1 reaches 10⁻⁴.
        code_width: size of the time code; 0 for four times the first width.
        num_classes: the network is told one of so many classes, ``net(x, label, classes)``; 0 for none.
        null_class: whether there is one class more that means "no class", and classes may be left out; else a network
            with classes must be told one, as that of diffusers.
        told: what the network is told beside the time: "classes", if there are any, "number", one real number an
            example, read as the time label is (of a "fourier" network the logarithm of it), or "code", a vector of
            ``code_width`` that is added to the time code.
        heads: number of attention heads on every level, in the place of their width; 0 for ``head_width``.
        heads_first: the weights of attention have queries, keys and values of one head side by side.
        waves: number of sines and cosines of the time; 0 for the first width.
        learned_variance: the output has twice the channels, the second half the range of the reverse variance.
        input_scale, input_shift: the network sees scale · x + shift.

    Raises:
        InputError: if an option is out of range or the sides cannot be halved often enough.
    """

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int] = (32, 64),
        num_blocks: int = 2,
        down: Sequence[str] = ("conv", "conv+attention"),
        up: Sequence[str] = ("conv+attention", "conv"),
        middle: str = "attention",
        middle_divisor: float = 1.0,
        middle_groups: int = 0,
        head_width: int = 8,
        groups: int = 32,
        eps: float = 1e-5,
        activation: str = "silu",
        scale_shift: bool = False,
        padding: int = 1,
        dropout: float = 0.0,
        embedding: str = "sinusoidal",
        frequency_shift: float = 1.0,
        code_width: int = 0,
        num_classes: int = 0,
        null_class: bool = False,
        told: str = "classes",
        heads: int = 0,
        heads_first: bool = False,
        waves: int = 0,
        learned_variance: bool = False,
        input_scale: float = 1.0,
        input_shift: float = 0.0,
    ) -> None:
        super().__init__()
        image_channels, widths = _require_sides(shape, widths)
        down, up = require_kinds("down", down, len(widths)), require_kinds("up", up, len(widths))
        _require_middle(middle, middle_divisor, middle_groups)
        require_int("num_blocks", num_blocks, 1)
        _require_ends(padding, input_scale, input_shift)
        style = Style(
            code_width=code_width or 4 * widths[0],
            dropout=dropout,
            groups=groups,
            eps=eps,
            activation=activation,
            scale_shift=scale_shift,
            head_width=head_width,
            heads=heads,
            heads_first=heads_first,
            dense=True,
        )
        waves = waves or widths[0]
        self.time = _time(embedding, waves, frequency_shift, style.code_width)
        self.embed_classes(num_classes, style.code_width, null_class)
        self._read_told(told, (2 if embedding == "fourier" else 1) * waves, style.code_width)
        self.stem = conv(image_channels, widths[0])

        met = self._add_down(down, widths, image_channels, num_blocks, style, padding)
        self.middle = None if middle == "none" else _middle(widths[-1], style, middle, middle_divisor, middle_groups)
        self._add_up(up, widths, image_channels, num_blocks, style, met)
        self.norm = style.norm(widths[0])
        self.head = zero_init(conv(widths[0], (2 if learned_variance else 1) * image_channels))
        self.activation, self.input_scale, self.input_shift = ACTIVATIONS[activation], input_scale, input_shift

    def _read_told(self, told: str, waves: int, width: int) -> None:
        """Make what reads a number or a code in the place of classes."""
        require(told in TOLD, "told", told, f"one of {', '.join(TOLD)}")
        alone = told == "classes" or not self.num_classes
        require(alone, "num_classes", self.num_classes, f"0, for the network is told a {told}")
        self.told = told
        self.number: nn.Sequential | None = None
        if told == "number":
            self.number = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that ``forward`` takes."""
        return super().conditions if self.told == "classes" else (self.told,)

    def _code(self, label: Tensor, classes: Tensor | None, number: Tensor | None, code: Tensor | None) -> Tensor:
        """Return the code of the time and of what else is told, (B, width)."""
        for name, value in (("number", number), ("code", code)):
            wanted = self.told == name
            require(wanted or value is None, name, "given", f"none: this network is told no {name}")
            require(not wanted or value is not None, name, None, f"{name} (B, *), which this network must be told")
        out: Tensor = self.add_classes(self.time(label), classes)
        if self.number is not None and number is not None:
            waves = self.time[0]
            fourier = isinstance(waves, GaussianFourier)
            out = out + self.number(waves(number.to(out).log() if fourier else number.to(out)))
        return out if code is None else out + code.to(out)

    def _add_down(
        self, kinds: Sequence[str], widths: Sequence[int], pixels: int, num_blocks: int, style: Style, padding: int
    ) -> list[int]:
        """Build the way down; returns the channels of the states that the way up meets, the last to be met first."""
        levels, met, below = [], [widths[0]], widths[0]
        for i, (kind, out) in enumerate(zip(kinds, widths, strict=True)):
            last = i + 1 == len(widths)
            levels.append(Down(kind, below, out, pixels, num_blocks, style, padding, last))
            met += [out] * (num_blocks + (not last))
            below = out
        self.down = nn.ModuleList(levels)
        return met

    def _add_up(
        self, kinds: Sequence[str], widths: Sequence[int], pixels: int, num_blocks: int, style: Style, met: list[int]
    ) -> None:
        """Build the way up."""
        levels, below = [], widths[-1]
        for i, (kind, out) in enumerate(zip(kinds, reversed(widths), strict=True)):
            meets = [met.pop() for _ in range(num_blocks + 1)]
            levels.append(Up(kind, below, out, meets, pixels, style, last=i + 1 == len(widths)))
            below = out
        self.up = nn.ModuleList(levels)

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        classes: Tensor | None = None,
        number: Tensor | None = None,
        code: Tensor | None = None,
    ) -> Tensor:
        """Evaluate the network.

        Args:
            x: images, (B, C, H, W).
            label: times, (B,).
            classes: whole numbers (B,), where the network is told a class.
            number: (B,), where it is told one.
            code: (B, width), where it is told one.

        Raises:
            InputError: on classes that do not fit, on what the network is not told, or where it must be told something.
        """
        # The activation is the same for all blocks, which only project the code.
        code = self.activation(self._code(label, classes, number, code))
        picture: Tensor | None = x
        if self.input_scale != 1.0 or self.input_shift != 0.0:
            picture = self.input_scale * x + self.input_shift
        h = self.stem(picture)
        states = [h]
        for level in self.down:
            h, more, picture = level(h, code, picture)
            states += more
        if self.middle is not None:
            h = self.middle(h, code)
        picture = None
        for level in self.up:
            h, picture = level(h, code, states, picture)
        h = self.head(silu(self.norm(h)))
        out: Tensor = h if picture is None else h + picture
        return out
