"""What a loader of trained weights is: it recognises a file or folder, and brings it into our words.

Weights are data, never code: a loader reads tensors, numbers and text, and refuses the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_diffusion.registry import Registry

LOADERS: Registry[Loader] = Registry("loader")


@dataclass(frozen=True)
class Pretrained:
    """A trained network in our words.

    Attributes:
        config: the keys of our configuration that the weights determine, nested: ``network``, ``sde``, ``denoiser`` …;
            and under ``data`` also ``shape``, that of one example, and ``levels``, its number of grey levels or None.
        weights: averaged weights by our network's names, buffers included.
        raw: those not averaged; None if there are none.
        step: training step.
        source: facts for the provenance: format, path, SHA-256 …
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    raw: dict[str, Tensor] | None
    step: int
    source: dict[str, Any]


class Loader(ABC):
    """Reads one project's checkpoints."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Return whether ``path`` looks like one, without reading more than it must."""

    @abstractmethod
    def load(self, path: Path, config: dict[str, Any] | None) -> Pretrained:
        """Read it.

        Args:
            path: file or folder that is recognised.
            config: a whole configuration that describes the network, nested, with ``shape`` and ``levels`` under
                ``data``, for sources that do not describe it themselves; or None.

        Raises:
            InputError: on weights that do not fit, an architecture that is not here, or a file that would run code.
        """
