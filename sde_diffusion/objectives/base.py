"""What every objective is: it turns a model, a batch and noise into a loss an example, which training makes small."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import InputError
from sde_diffusion.noise import NoiseStream
from sde_diffusion.registry import Registry

OBJECTIVES: Registry[Objective] = Registry("objective")


class Objective(ABC):
    """Turns a model, a batch and noise into a loss an example.

    ``parts`` are the options that are parts with options of their own, and the registries that they are chosen from; a
    part is built by :meth:`~sde_diffusion.registry.Registry.part`.
    """

    parts: ClassVar[Mapping[str, Registry[Any]]] = {}

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, noise: NoiseStream, **conditions: Any) -> Tensor:
        """Return the loss of each example, (B,).

        Args:
            model: what is trained.
            x: data, shape (B, *).
            noise: one stream an example, from which everything random is drawn.
            conditions: passed on to the model.
        """


def as_denoiser(model: nn.Module) -> AbstractDenoiser:
    """Return the model of an objective that is one of a denoiser.

    Raises:
        InputError: if it is none.
    """
    if not isinstance(model, AbstractDenoiser):
        raise InputError(f"model={type(model).__name__}: expected a denoiser; wrap a network, sd.Denoiser(net, sde)")
    return model
