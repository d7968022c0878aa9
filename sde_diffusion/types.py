"""Aliases and protocols that every floor shares."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from sde_diffusion.denoisers import Prediction
    from sde_diffusion.sdes import SDE

NoiseFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``noise(x, t, s)``: standard normal noise shaped like ``x`` for a step from time ``t`` to ``s``."""

Callback = Callable[[int, Tensor, Tensor], None]
"""``callback(step, t, x)``: sees the state ``x`` after ``step`` steps, at time ``t``; step 0 is the start."""


class DenoiserLike(Protocol):
    """What a sampler, a loss or a likelihood needs: a prediction at ``(x, t)`` and the SDE it belongs to."""

    @property
    def sde(self) -> SDE: ...

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Prediction: ...

    def round_t(self, t: Tensor) -> Tensor:
        """Return the times nearest to ``t`` that the network was trained on."""
        ...
