"""Predictor-corrector sampling: any grid sampler's step, then corrections at the new time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from samplers.base import SAMPLERS
from samplers.correctors import CORRECTORS, Corrector
from samplers.grid import GridSampler
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import InputError, require_float, require_int
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.sde import SDE
from sde_diffusion.types import NoiseFn


@dataclass(frozen=True, kw_only=True)
class IdentityPredictor(GridSampler[None]):
    """Changes the time and leaves the state: with a Langevin corrector, annealed Langevin dynamics."""

    order = None
    stochastic = False
    nfe_per_step = 0
    reference = "Song & Ermon 2019, arXiv:1907.05600"

    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: None, noise: NoiseFn
    ) -> tuple[Tensor, None]:
        return x, None


@SAMPLERS.register("pc")
@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(GridSampler[object]):
    """A predictor's step from t to s, then ``corrector_steps`` corrections at s.

    A part is given by its name; by a mapping of "name" and its own options, ``{"name": "ddim", "eta": 0.5}``; or as an
    object. In the sampler it is the object: ``pc.predictor.eta``.

    Args:
        predictor: any grid sampler, or "identity".
        corrector: "langevin", a registered corrector, or "none".
        corrector_steps: corrections a step ≥ 1.
        snr, step_rule: options of a corrector that is not an object, as far as it has them and is not given others.

    References:
        Song et al. 2021, arXiv:2011.13456, Algorithm 1 and Appendix G.
    """

    reference = "Song et al. 2021, arXiv:2011.13456, Alg. 1"
    parts = {"predictor": SAMPLERS, "corrector": CORRECTORS}  # noqa: RUF012

    predictor: str | Mapping[str, Any] | GridSampler[Any] = "reverse_diffusion"
    corrector: str | Mapping[str, Any] | Corrector = "langevin"
    corrector_steps: int = 1
    snr: float = 0.16
    step_rule: str = "sigma"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("corrector_steps", self.corrector_steps, 1)
        require_float("snr", self.snr, 0.0, open_low=True)
        object.__setattr__(self, "predictor", _predictor(self.predictor))
        object.__setattr__(self, "corrector", self._built_corrector(self.corrector))

    def _built_corrector(self, given: str | Mapping[str, Any] | Corrector) -> Corrector | str:
        if isinstance(given, Corrector) or given == "none":
            return given
        own = dict(given) if isinstance(given, Mapping) else {"name": given}
        flat = {"snr": self.snr, "step_rule": self.step_rule}
        known = CORRECTORS.config(own["name"])
        return CORRECTORS.build(**{name: flat[name] for name in flat.keys() & known.keys()} | own)

    @property
    def _moves(self) -> GridSampler[Any]:
        return cast(GridSampler[Any], self.predictor)

    @property
    def _corrects(self) -> Corrector | None:
        return self.corrector if isinstance(self.corrector, Corrector) else None

    def options(self) -> dict[str, Any]:
        """Return the options as plain values; a part with the options that its name alone gives it, as its name."""
        found = super().options()
        if self._corrects is not None:
            name = CORRECTORS.name_of(self._corrects)
            own = {"name": name, **vars(self._corrects)}
            found["corrector"] = name if self._built_corrector(name) == self._corrects else own
        if isinstance(self._moves, IdentityPredictor):
            return found | {"predictor": "identity"}
        name = SAMPLERS.name_of(self._moves)
        same = SAMPLERS.build(name) == self._moves
        return found | {"predictor": name if same else {"name": name, **self._moves.options()}}

    @property
    def order(self) -> float | None:
        return self._moves.order if self._corrects is None else 1

    @property
    def stochastic(self) -> bool:
        return self._corrects is not None or self._moves.stochastic

    @property
    def nfe_per_step(self) -> int | None:
        corrected = 0 if self._corrects is None else self.corrector_steps * self._corrects.nfe
        return (self._moves.nfe_per_step or 0) + corrected

    @property
    def from_pure_noise(self) -> bool:
        return self._moves.from_pure_noise

    @property
    def start_nfe(self) -> int:
        return self._moves.start_nfe

    def limit_variance(self, sde: SDE, t: float, variance: float) -> float:
        """Corrections dominate many small steps."""
        judge = self._moves if self._corrects is None else self._corrects
        return judge.limit_variance(sde, t, variance)

    def init(self, denoiser: AbstractDenoiser, x: Tensor, levels: Sequence[NoiseLevel]) -> object:
        return self._moves.init(denoiser, x, levels)

    def step(
        self, denoiser: AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: object, noise: NoiseFn
    ) -> tuple[Tensor, object]:
        x, state = self._moves.step(denoiser, x, t, s, state, noise)
        if isinstance(self.corrector, Corrector):
            for _ in range(self.corrector_steps):
                x = self.corrector.correct(denoiser, x, t, s, noise)
        return x, state


def _predictor(given: str | Mapping[str, Any] | GridSampler[Any]) -> GridSampler[Any]:
    """Return a predictor as an object.

    Raises:
        InputError: if it has no single steps to correct.
    """
    found = IdentityPredictor() if given == "identity" else SAMPLERS.part(given)
    if not isinstance(found, GridSampler) or isinstance(found, PredictorCorrector):
        raise InputError(
            f"predictor={given!r}: expected a sampler that steps along a grid, or 'identity'; "
            "this one has no single steps to correct"
        )
    return found
