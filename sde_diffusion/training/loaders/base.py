"""What a loader of another project's weights hands over: our configuration and weights by our network's names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sde_diffusion.registry import Registry

LOADERS: Registry[Loader] = Registry("loader")


@dataclass(frozen=True)
class Pretrained:
    """Another project's checkpoint in our words.

    Attributes:
        config: the keys of our configuration that differ from the default, nested; ``data`` has the ``shape`` of one
            example and the number of grey ``levels``.
        weights: averaged weights by our network's names.
        raw: those that were not averaged, if the checkpoint has them.
        step: training step; 0 if the checkpoint does not say.
        source: where it came from, for the provenance.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    raw: dict[str, Tensor] | None = None
    step: int = 0
    source: dict[str, Any] = field(default_factory=dict)


class Loader(ABC):
    """Reads one format of checkpoints."""

    @abstractmethod
    def recognises(self, path: Path) -> bool:
        """Return whether ``path`` looks like this format."""

    @abstractmethod
    def load(self, path: Path, config: dict[str, Any] | None = None) -> Pretrained:
        """Read a checkpoint.

        Args:
            config: what the user says about it, nested as our configuration.

        Raises:
            InputError: naming the key or option that is missing, unexpected or unsupported.
        """
