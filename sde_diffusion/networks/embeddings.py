"""How a network reads its time label and its class: a number becomes waves, the waves a learned code, a class another.

A label may be 999 t, a DDPM index in 0 … 999 or log σ in about −5 … 4. The sinusoidal embedding has wave lengths from
2π to 2π·10⁴ and tells labels of all three kinds apart; Gaussian Fourier features are meant for log σ.

A class is told by a vector that is added to the code of the time; one vector more can stand for "no class", so that a
network is conditional and unconditional at once and classifier-free guidance can contrast the two.

References:
    A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, Section 3.5.
    M. Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains", 2020,
    arXiv:2006.10739; as time embedding Y. Song et al., 2021, arXiv:2011.13456 (NCSN++, scale 16).
    J. Ho, T. Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598, Section 3.2 (the null token).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.registry import Registry

EMBEDDINGS: Registry[nn.Module] = Registry("embedding")


@EMBEDDINGS.register("sinusoidal")
class Sinusoidal(nn.Module):
    """(sin ω_i c, cos ω_i c) with ω_i = max_period^(−i/(features/2 − shift)): (B,) → (B, features).

    The frequencies are computed on the spot, so a network built on the meta device has nothing to restore.

    Args:
        features: an even number of at least 4.
        max_period: the longest wave is 2π times this, with ``shift`` 1.
        shift: a number below features/2.
    """

    def __init__(self, features: int, max_period: float = 10_000.0, shift: float = 1.0) -> None:
        super().__init__()
        require_int("features", features, 4)
        require(features % 2 == 0, "features", features, "an even number")
        require_float("max_period", max_period, 1.0, open_low=True)
        require_float("shift", shift)
        require(2.0 * shift < features, "shift", shift, f"a number below half of {features} features")
        self.features = features
        self.max_period = max_period
        self.shift = shift

    def forward(self, label: Tensor) -> Tensor:
        half = self.features // 2
        i = torch.arange(half, device=label.device, dtype=label.dtype)
        angle = label[:, None] * torch.exp(i * (-math.log(self.max_period) / (half - self.shift)))
        return torch.cat([angle.sin(), angle.cos()], dim=1)


@EMBEDDINGS.register("fourier")
class GaussianFourier(nn.Module):
    """(sin 2π w_i c, cos 2π w_i c) with fixed w_i ~ N(0, scale²): (B,) → (B, features).

    The frequencies are drawn once from torch's global generator and saved with the weights.

    Args:
        features: an even number of at least 2.
        scale: standard deviation of the frequencies; 16 suits labels log σ, whose useful differences are about 1/16.
    """

    frequencies: Tensor

    def __init__(self, features: int, scale: float = 16.0) -> None:
        super().__init__()
        require_int("features", features, 2)
        require(features % 2 == 0, "features", features, "an even number")
        require_float("scale", scale, 0.0, open_low=True)
        self.register_buffer("frequencies", torch.randn(features // 2) * scale)

    def forward(self, label: Tensor) -> Tensor:
        angle = label[:, None] * self.frequencies * (2.0 * math.pi)  # in this order: angles of 1000 feel the rounding
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """The waves of a label through two dense layers with SiLU after each: (B,) → (B, width).

    Args:
        embedding: "sinusoidal" or "fourier".
        features: number of waves, even.
        width: size of the code.
    """

    def __init__(self, embedding: str, features: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            EMBEDDINGS.build(embedding, features=features),
            nn.Linear(features, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )

    def forward(self, label: Tensor) -> Tensor:
        code: Tensor = self.layers(label)
        return code


class ClassEmbedding(nn.Embedding):
    """A learned code of each class: whole numbers (B,) → (B, width).

    Args:
        num_classes: N; the classes are 0 … N − 1.
        width: size of the code.
        null_class: whether there is one row more, N, that stands for "no class".
    """

    def __init__(self, num_classes: int, width: int, null_class: bool = True) -> None:
        super().__init__(num_classes + null_class, width)
        self.num_classes, self.null_class = num_classes, null_class

    def forward(self, classes: Tensor) -> Tensor:
        """Look the codes up.

        Raises:
            InputError: if they are no whole numbers, or out of range (where that is known: on a CPU).
        """
        whole = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
        require(whole, "classes.dtype", classes.dtype, "whole numbers, such as torch.int64")
        try:
            return super().forward(classes.long())
        except IndexError:  # no read of the tensor beforehand, which would stop a device
            wrong = next(index for index in classes.tolist() if not 0 <= index < self.num_embeddings)
            expected = f"0 to {self.num_classes - 1}" + f", or {self.num_classes} for no class" * self.null_class
            raise InputError(f"classes={wrong}: expected {expected}") from None


class ClassConditional(nn.Module):
    """A network that may be told a class; what the rest of the program reads of it, see ``NETWORKS``."""

    classes: ClassEmbedding | None

    def embed_classes(self, num_classes: int, width: int, null_class: bool = True) -> None:
        """Make the codes of the classes, ``self.classes``; None, and nothing drawn, for ``num_classes`` 0.

        Raises:
            InputError: if an option is out of range.
        """
        require_int("num_classes", num_classes, 0)
        require(isinstance(null_class, bool), "null_class", null_class, "True or False")
        self.classes = ClassEmbedding(num_classes, width, null_class) if num_classes else None

    @property
    def num_classes(self) -> int:
        """The number of classes; 0 for none."""
        return 0 if self.classes is None else self.classes.num_classes

    @property
    def null_class(self) -> bool:
        """Whether class ``num_classes`` is there and means "no class"."""
        return self.classes is not None and self.classes.null_class

    @property
    def conditions(self) -> tuple[str, ...]:
        """The names of the conditions that ``forward`` takes."""
        return ("classes",) if self.num_classes else ()

    def add_classes(self, code: Tensor, classes: Tensor | None) -> Tensor:
        """Return the time code with that of the classes added: (B, width), (B,) → (B, width).

        Args:
            code: the time code.
            classes: whole numbers (B,), or None for no class.

        Raises:
            InputError: on classes that do not fit, or that the network has not.
        """
        if self.classes is None:
            expected = "none: this network has no classes"
            require(classes is None, "classes", "given", expected, "build it with num_classes=…")
            return code
        count = self.num_classes
        if classes is None:
            expected = f"for each example one of the {count} classes that this network must be told, numbers (B,)"
            require(self.null_class, "classes", None, expected, 'it has no row for "no class" (null_class=False)')
            classes = torch.full(code.shape[:1], count, device=code.device)
        size = code.shape[:1]
        require(classes.shape == size, "classes.shape", tuple(classes.shape), f"{tuple(size)}, one for each example")
        out: Tensor = code + self.classes(classes)
        return out
