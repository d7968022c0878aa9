"""Likelihood of a data set: the ODE's, the continuous-time bound and the discrete bound of the same examples.

All numbers are log p(x) in nats, x as the data set holds it: a probability of grey levels, a density of continuous data
(:mod:`sde_diffusion.codecs`). Examples are scored in their order, batch by batch, the last partial one included. Each
one's numbers depend on the seed and on its place alone, so a score that was stopped goes on where it was, in batches of
any size.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion import bounds, likelihood
from sde_diffusion.codecs import Codec
from sde_diffusion.data import Examples
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.errors import InputError, require, require_float, require_int
from sde_diffusion.files import write_atomically
from sde_diffusion.noise import NoiseStream, stream
from sde_diffusion.reading import read_arrays
from sde_diffusion.sde import SDE
from sde_diffusion.timesteps import GRIDS

PILOT = 16
"""Examples that choose the tolerance and measure the solver's and the truncation's error."""
BOUNDS = ("continuous", "discrete")


def codec_noise(seed: int, indices: Sequence[int], draw: int = 0) -> NoiseStream:
    """Return the noise with which a codec encodes what is scored.

    Args:
        indices: numbers of the examples.
        draw: number of the dequantisation.
    """
    return NoiseStream(stream(seed, f"dequantisation {draw}"), indices)


@dataclass(frozen=True)
class ScoringOptions:
    """What is computed of each example.

    Args:
        divergence, probes, probe_law: of the ODE's likelihood.
        tolerance: of the ODE solver; 0 chooses it, so that the solver's error stays below a tenth of the statistical.
        dequantisations: draws of uniform noise in the cells of the grey levels.
        t_min: where the flow and the bounds start; 0 takes 1e-5 (or the first time of a network of discrete time) for
            the flow and :func:`bound_start` for the bounds.
        bound_draws: evaluations of the continuous bound, even.
        bound_steps: steps of the discrete bound.
        bound_grid: its grid; "indices" with all N training steps and t_min = 1/N gives DDPM's own bound.
        variance: its reverse variance, as of the ``ancestral`` sampler.
    """

    divergence: str = "hutchinson"
    probes: int = 1
    probe_law: str = "rademacher"
    tolerance: float = 0.0
    dequantisations: int = 1
    t_min: float = 0.0
    bound_draws: int = 32
    bound_steps: int = 100
    bound_grid: str = "log_snr"
    variance: str = "posterior"

    def __post_init__(self) -> None:
        require_int("probes", self.probes, 1)
        require_float("tolerance", self.tolerance, 0.0)
        require_int("dequantisations", self.dequantisations, 1)
        require_float("t_min", self.t_min, 0.0)
        require_int("bound_draws", self.bound_draws, 2)
        require(self.bound_draws % 2 == 0, "bound_draws", self.bound_draws, "an even number")
        require_int("bound_steps", self.bound_steps, 1)
        for name, known in (("divergence", likelihood.DIVERGENCES), ("probe_law", likelihood.PROBE_LAWS)):
            require(getattr(self, name) in known, name, getattr(self, name), f"one of {', '.join(known)}")
        GRIDS[self.bound_grid]


def bound_start(sde: SDE, cell: float | None) -> float:
    """Return the time at which bounds on grey levels end: that where σ/α is half a cell.

    Below it the level is plain, and a bound only adds what the network gets wrong; the choice is flat (a factor 1.5
    either way costs 0.02 bits/dim on digits) and any time gives a bound. Continuous data (no cell) end at 1e-5.
    """
    if cell is None:
        return likelihood.T_MIN
    half = torch.tensor(-2.0 * math.log(0.5 * cell), dtype=torch.float64)
    return max(float(sde.time_of_log_snr(half)), likelihood.T_MIN)


@dataclass(frozen=True)
class Scores:
    """Numbers of each example, in nats; arrays on the CPU.

    Attributes:
        ode: log p(x) by the ODE, (M, N) for M draws of the codec's noise; NaN where the solve failed.
        ode_std_error: standard error of each from its probes, (M, N).
        nfe: evaluations of each solve, (M, N).
        continuous: the bound log p(x) ≥ … in continuous time, (N,), and its standard error.
        discrete: the discrete bound log p(x) ≥ …, (N,).
        parts: mean of L_T, the terms between and L_0 of both bounds, of −log p in model space.
        curves: per bound, rows of log SNR, mean term in nats per unit of log SNR, its standard error over examples.
        reasons: why solves failed, by example.
        pilot: the tolerance, and what chose it.
    """

    ode: np.ndarray
    ode_std_error: np.ndarray
    nfe: np.ndarray
    continuous: np.ndarray
    continuous_std_error: np.ndarray
    discrete: np.ndarray
    parts: dict[str, dict[str, float]]
    curves: dict[str, np.ndarray]
    reasons: dict[int, str]
    pilot: dict[str, Any]


NAMES = {
    "ode": "log_p_ode_nats",
    "ode_std_error": "log_p_ode_std_error_nats",
    "nfe": "ode_evaluations",
    "continuous": "log_p_continuous_bound_nats",
    "continuous_std_error": "log_p_continuous_bound_std_error_nats",
    "discrete": "log_p_discrete_bound_nats",
}
"""What the arrays of :class:`Scores` are called in a file."""


class Scorer:
    """Scores examples.

    Args:
        denoiser: the model.
        codec: the way from the examples to its space.
        examples: what is scored, and what it is conditioned on.
        options: what to compute.
        seed: of dequantisation, probes, times and noise.
        device: where to compute.
    """

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        codec: Codec,
        examples: Examples,
        options: ScoringOptions,
        seed: int,
        device: torch.device,
    ) -> None:
        self.denoiser, self.codec, self.examples, self.options = denoiser, codec.density, examples, options
        self.seed, self.device = seed, device
        sde = denoiser.sde
        denoiser.require_conditions(examples.conditions, len(examples))
        start = options.t_min or bound_start(sde, codec.cell)
        t_min = options.t_min or likelihood.T_MIN
        require(t_min < sde.t_max, "t_min", t_min, f"a time below {sde.t_max:g}")
        self.t_min = float(denoiser.round_t(torch.tensor(t_min, dtype=torch.float64)))
        self.bound_t_min = float(denoiser.round_t(torch.tensor(start, dtype=torch.float64)))
        grid = denoiser.round_t(GRIDS[options.bound_grid](sde, options.bound_steps, self.bound_t_min))
        self.times = torch.unique_consecutive(grid.clamp_max(denoiser.start_time()))  # rounded times may coincide

    def encoded(self, first: int, last: int, draw: int) -> tuple[Tensor, Tensor]:
        """Return examples ``first`` … ``last`` in model space, with the codec's noise, and their log-weights."""
        noise = codec_noise(self.seed, range(first, last), draw)
        z, weight = self.codec.encode(self.examples.x[first:last], noise)
        return z.to(self.device), weight

    def likelihood(self, first: int, last: int, draw: int, tolerance: float, check: int) -> likelihood.LikelihoodResult:
        """Return the ODE's likelihood of examples ``first`` … ``last``; log p(x), the log-weight included."""
        z, weight = self.encoded(first, last, draw)
        found = likelihood.log_likelihood(
            self.denoiser,
            z,
            rtol=tolerance,
            atol=tolerance,
            check=check,
            first_index=first,
            **self._ode_options(draw),
            **_given(self.examples[first:last]),
        )
        return replace(found, log_prob=found.log_prob + weight.to(found.log_prob))

    def _ode_options(self, draw: int) -> dict[str, Any]:
        o = self.options
        seed = stream(self.seed, f"likelihood of dequantisation {draw}")
        return {
            "divergence": o.divergence,
            "probes": o.probes,
            "probe_law": o.probe_law,
            "t_min": self.t_min,
            "seed": seed,
        }

    def pilot(self) -> dict[str, Any]:
        """Choose the tolerance and measure the error budget on the first examples."""
        count, total = min(PILOT, len(self.examples)), len(self.examples)
        record: dict[str, Any] = {"examples": count}
        tolerance = self.options.tolerance
        if not tolerance:
            require(count >= 2, "examples", count, "at least 2, to choose a tolerance", "or give --tolerance")
            z, _ = self.encoded(0, count, 0)
            given = _given(self.examples[:count])
            chosen = likelihood.choose_tolerance(self.denoiser, z, total, **self._ode_options(0), **given)
            tolerance = chosen.value
            record |= {"statistical": chosen.statistical, "sufficient": chosen.sufficient}
        budget = self.likelihood(0, count, 0, tolerance, check=count).budget
        z, start = self.encoded(0, total, 0)[0], self.denoiser.start_time()
        prior = float(bounds.prior_kl(self.denoiser.sde, z, start).mean())
        return record | {
            "tolerance": tolerance,
            "solver": budget.solver,
            "truncation": budget.truncation,
            "prior": prior,
        }

    def score(self, path: Path, key: dict[str, Any], batch_size: int, on_example: Callable[[int], object]) -> Scores:
        """Score all examples; ``path`` (``.npz``) keeps what is finished.

        Args:
            key: everything the numbers depend on; a file with another key is not continued.
            on_example: called with the number of examples that are newly finished.
        """
        made_with, state = read_state(path) if path.exists() else ("", {})
        if made_with != digest_of(key):
            state = self._fresh()
        self._require_whole(state, path)
        on_example(int(state["done"]))
        if not any(name.startswith(_PILOT) for name in state):
            state |= {f"{_PILOT}{name}": np.asarray(value) for name, value in self.pilot().items()}
            _save(path, key, state)
        pilot = {name.removeprefix(_PILOT): v.tolist() for name, v in state.items() if name.startswith(_PILOT)}
        reasons = dict(zip(state["failed"].tolist(), state["why"].tolist(), strict=True))
        while (first := int(state["done"])) < len(self.examples):
            last = min(first + batch_size, len(self.examples))
            for draw in range(self.options.dequantisations):
                r = self.likelihood(first, last, draw, pilot["tolerance"], check=0)
                for name, values in (("ode", r.log_prob), ("ode_std_error", r.std_error), ("nfe", r.nfe)):
                    state[NAMES[name]][draw, first:last] = values.cpu().numpy()
                reasons |= {first + i: reason for i, reason in r.reasons.items()}
            self._bounds(state, first, last)
            state |= {
                "done": np.array(last),
                "failed": np.array([*reasons], np.int64),
                "why": np.array([*reasons.values()], str),
            }
            _save(path, key, state)
            on_example(last - first)
        return self._scores(state, pilot, reasons)

    def _bounds(self, state: dict[str, np.ndarray], first: int, last: int) -> None:
        """Add both bounds of examples ``first`` … ``last``."""
        part, cell = self.examples[first:last], self.codec.cell
        with torch.no_grad():
            points, weight = self.codec.encode(part.x)
            x0 = points.to(self.device)
            streams = {name: NoiseStream(stream(self.seed, f"{name} bound"), range(first, last)) for name in BOUNDS}
            both = {
                "continuous": bounds.continuous_bound(
                    self.denoiser,
                    x0,
                    streams["continuous"],
                    draws=self.options.bound_draws,
                    t_min=self.bound_t_min,
                    cell=cell,
                    **_given(part),
                ),
                "discrete": bounds.discrete_bound(
                    self.denoiser,
                    x0,
                    self.times,
                    streams["discrete"],
                    variance=self.options.variance,
                    cell=cell,
                    **_given(part),
                ),
            }
        of_density = (weight if cell is None else torch.zeros_like(weight)).numpy()  # of a level it is a probability
        for name, bound in both.items():
            state[NAMES[name]][first:last] = of_density - bound.total.cpu().double().numpy()
            parts = [bound.prior, bound.terms.sum(dim=0), bound.reconstruction]
            state[f"{name}_parts"] += np.array([float(part.cpu().double().sum()) for part in parts])
            terms = bound.terms.cpu().double()
            if name == "continuous":  # the draws of one cell together
                terms = terms.reshape(len(terms) // 2, 2, -1).sum(dim=1)
            state[f"{name}_curve"] += torch.stack([terms.sum(dim=1), terms.square().sum(dim=1)]).numpy()
        state[NAMES["continuous_std_error"]][first:last] = both["continuous"].std_error.cpu().double().numpy()

    def _require_whole(self, state: dict[str, np.ndarray], path: Path) -> None:
        """Refuse numbers that were read unless they have the names, shapes and kinds of those to be continued."""
        for name, own in self._fresh().items():
            wanted = f"{own.dtype} {own.shape}"
            require(name in state, f"{path}: {name}", None, wanted, "delete the file to start again")
            found = state[name]
            kinds, ends = {found.dtype.kind, own.dtype.kind}, {found.shape, own.shape}
            ok = len(kinds) == 1 and (len(ends) == 1 or (name in ("failed", "why") and found.ndim == 1))
            require(ok, f"{path}: {name}", f"{found.dtype} {found.shape}", wanted, "delete the file to start again")
        same = len(state["failed"]) == len(state["why"])
        require(same, f"{path}: failed", len(state["failed"]), f"as many as the {len(state['why'])} reasons why")
        done = int(state["done"])
        count = len(self.examples)
        require(0 <= done <= count, f"{path}: done", done, f"a number of at most {count} examples")

    def _fresh(self) -> dict[str, np.ndarray]:
        n, m = len(self.examples), self.options.dequantisations
        steps = {"continuous": self.options.bound_draws // 2, "discrete": len(self.times) - 1}
        of_draws = ("ode", "ode_std_error", "nfe")
        shapes = {name: (m, n) if field in of_draws else (n,) for field, name in NAMES.items()}
        state: dict[str, Any] = {name: np.full(shape, math.nan) for name, shape in shapes.items()}
        state |= {f"{name}_parts": np.zeros(3) for name in steps}
        state |= {f"{name}_curve": np.zeros((2, count)) for name, count in steps.items()}
        return state | {"done": np.array(0), "failed": np.zeros(0, np.int64), "why": np.zeros(0, str)}

    def _scores(self, state: dict[str, np.ndarray], pilot: dict[str, Any], reasons: dict[int, str]) -> Scores:
        n = len(self.examples)
        sde = self.denoiser.sde
        ends = torch.tensor([self.bound_t_min, self.denoiser.start_time(from_pure_noise=False)], dtype=torch.float64)
        high, low = (float(v) for v in sde.log_snr(ends))
        cells = self.options.bound_draws // 2
        steps = sde.log_snr(self.times)
        if torch.isinf(steps[0]):  # from α = 0 on, a cell without end: drawn as if from the middle of its times
            steps[0] = sde.log_snr(self.times[:2].mean())
        edges = {"continuous": np.linspace(high, low, cells + 1), "discrete": steps.numpy()}
        curves = {}
        for name, edge in edges.items():
            total, squares = state[f"{name}_curve"]
            width = np.abs(np.diff(edge))
            error = np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0.0) / max(n - 1, 1))
            curves[name] = np.stack([0.5 * (edge[1:] + edge[:-1]), total / n / width, error / width])
        labels = ("prior", "diffusion", "reconstruction")
        parts = {name: dict(zip(labels, (state[f"{name}_parts"] / n).tolist(), strict=True)) for name in edges}
        arrays = {field: state[name] for field, name in NAMES.items()}
        return Scores(**arrays, parts=parts, curves=curves, reasons=reasons, pilot=pilot)


def _given(examples: Examples) -> dict[str, Any]:
    return dict(examples.conditions)


_PILOT = "pilot "
"""What the names of the arrays begin with that the pilot's numbers are kept in."""


def digest_of(key: dict[str, Any]) -> str:
    """Return the SHA-256 by which keys are compared."""
    return hashlib.sha256(f"scores 3 {json.dumps(key, sort_keys=True)}".encode()).hexdigest()


def _save(path: Path, key: dict[str, Any], state: dict[str, np.ndarray]) -> None:
    content: dict[str, Any] = {**state, "key": digest_of(key)}
    write_atomically(path, lambda p: np.savez(p, **content))


def read_state(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read a file of scores, finished or not: the SHA-256 of its key, and its arrays.

    In files of version 0.1.0 the key itself stands there, which is that of no score of today.

    Raises:
        InputError: if it is not one.
    """
    state = read_arrays("scores", path, "delete it to start again")
    if "key" not in state:
        raise InputError(f"{path}: not a readable file of scores (it has no key); delete it to start again")
    return str(state.pop("key")), state
