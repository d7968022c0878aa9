"""What a codec is: a map from data to model space and back, with what it does to a density.

    z, w = encode(x),    log p(x) ≥ E[log p(z) + w]

with equality for bijections, whose log-weight is w = log |det ∂z/∂x|. For grey levels, which are spread at random over
their cells, p(x) is a probability and w the logarithm of a cell's volume (Theis et al. 2016, arXiv:1511.01844).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from sde_diffusion.data import Dataset
from sde_diffusion.errors import require
from sde_diffusion.noise import NoiseStream
from sde_diffusion.registry import Registry

CODECS: Registry[Codec] = Registry("codec")
AUTO = "auto"
"""The codec that goes with the data: grey levels for those, else standardisation."""


@dataclass(frozen=True)
class Codec(ABC):
    """The way between data and model space.

    One's own is a frozen dataclass, registered with ``CODECS``, whose fields are all that it is made of: numbers, texts
    and tuples of them, as a run stores them. Those with a default are options, with flags; what is measured on data is
    not, and is found by :meth:`of`.
    """

    @classmethod
    def of(cls, dataset: Dataset, **options: Any) -> Self:
        """Return the codec of a data set, whatever of it is measured being measured on its training split.

        Raises:
            InputError: if it is not one for such data, or on an option out of range.
        """
        return cls(**options)

    @abstractmethod
    def encode(self, x: Tensor, noise: NoiseStream | None = None) -> tuple[Tensor, Tensor]:
        """Take data to model space.

        Args:
            x: as the data set holds them, (B, *).
            noise: one stream an example, for a codec that is random; without it z is the point that stands for x.

        Returns:
            z, float32 (B, *), and the log-weight of each, nats, float64 (B,).

        Raises:
            InputError: on another dtype, or a shape that is not that of the codec.
        """

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Take model space to data: (B, *), of the dtype and shape that the data set has.

        Raises:
            InputError: on another shape, integers, NaN or infinity.
        """

    @property
    def cell(self) -> float | None:
        """Width in model space of the cell around each grey level; None for continuous data."""
        return None

    @property
    def density(self) -> Codec:
        """The codec under which densities bound those of the data: itself, unless it is not random and ought to be."""
        return self


def check_model_space(z: Tensor) -> None:
    """Refuse what cannot be decoded.

    Raises:
        InputError: on integers, NaN or infinity.
    """
    require(z.is_floating_point(), "z dtype", z.dtype, "floating point, model space")
    broken = int((~z.isfinite()).sum())
    require(broken == 0, "z NaN or infinite values", broken, "none", "the sampler or the network diverged")


def unweighted(x: Tensor) -> Tensor:
    """Return log-weights of 0, float64 (B,)."""
    return torch.zeros(len(x), dtype=torch.float64)


def codec_for(dataset: Dataset, name: str = AUTO, **options: Any) -> Codec:
    """Return a codec by its name, made for a data set.

    Args:
        name: "auto" for that which goes with the data.
        options: of it.

    Raises:
        InputError: on an unknown name or option, or a codec that is none for such data.
    """
    if name == AUTO:
        name = "standardised" if dataset.levels is None else "grey_levels"
    entry: Any = CODECS[name]
    known = CODECS.config(name)
    for option, value in options.items():
        require(option in known, option, value, f"one of the options of codec {name!r}: {', '.join(known) or 'none'}")
    codec: Codec = entry.of(dataset, **options)
    return codec


def describe_codec(codec: Codec) -> dict[str, Any]:
    """Return what a run stores of a codec, nested and plain.

    Raises:
        InputError: if it is not registered, and so could not be made again.
    """
    return {"name": CODECS.name_of(codec), **asdict(codec)}


def stored_codec(stored: dict[str, Any]) -> Codec:
    """Make the codec again that a run has stored.

    Raises:
        InputError: if it is of another version or of a plug-in that is not loaded, or damaged.
    """
    name, known = stored.get("name"), list(CODECS)
    require(isinstance(name, str) and name in known, "codec.name", name, f"one of {', '.join(known)}")
    entry: Any = CODECS[str(name)]
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items() if key != "name"}
    needed = {field.name for field in fields(entry) if field.init}
    optional = needed & CODECS.config(str(name)).keys()
    whole = needed - optional <= values.keys() <= needed
    require(whole, f"fields of codec {name!r}", ", ".join(sorted(values)), ", ".join(sorted(needed)) or "none")
    return CODECS.build(str(name), **values)
