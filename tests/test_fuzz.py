"""Any shape, dtype, step count, grid, SDE and option that is allowed: what comes out is finite, or one clear line.

Hypothesis chooses, the same in every run, extremes included; the slow tests choose more of the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import samplers
import sde_diffusion as sd
from samplers.scipy_ode import SCIPY_METHODS
from samplers.torchsde_solvers import TORCHSDE_METHODS
from sde_diffusion.codecs.grey_levels import GreyLevels
from sde_diffusion.codecs.standardised import Standardised
from sde_diffusion.denoisers import PREDICTIONS
from sde_diffusion.labels import NOISE_LABELS
from sde_diffusion.objectives import TIMES, WEIGHTINGS
from sde_diffusion.ode import ODE_METHODS
from sde_diffusion.sdes import SDES
from sde_diffusion.timesteps import GRIDS, require_start

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")

Draw = Callable[[Any], Any]


def powers(low: float, high: float) -> Any:
    """Numbers from 10^low to 10^high, of all sizes alike."""
    return st.floats(low, high).map(lambda power: 10.0**power)


# vectors, series, pictures, volumes
SHAPES = st.sampled_from([(1,), (3,), (1, 5), (2, 4), (1, 2, 2), (3, 4, 2), (1, 2, 2, 2)])
DTYPES = st.sampled_from([torch.float32, torch.float64])
SEEDS = st.integers(0, 2**63 - 1)
T_MIN = st.one_of(powers(-4, 0), powers(-300, 0))
BETAS = st.lists(st.one_of(st.floats(1e-6, 0.999999), powers(-300, -1)), min_size=1, max_size=8)
LINEAR = st.tuples(st.one_of(st.just(0.0), powers(-6, 2)), st.one_of(powers(-3, 2), powers(-300, 300))).map(
    lambda two: {"beta_min": min(two), "beta_max": max(two)}
)
PARAMETERS = {
    "vp": LINEAR,
    "subvp": LINEAR,
    "ve": st.tuples(st.one_of(powers(-6, 0), powers(-300, 0)), st.one_of(powers(0.01, 6), powers(0.01, 300))).map(
        lambda two: {"sigma_min": two[0], "sigma_max": two[1]}
    ),
    "cosine": st.fixed_dictionaries({"offset": st.floats(0.0, 1.0), "T": st.floats(0.01, 0.9999)}),
    "ddpm": st.one_of(
        BETAS.map(lambda betas: {"betas": betas}),
        st.fixed_dictionaries({"schedule": st.just("cosine"), "num_train_steps": st.integers(1, 2000)}),
        st.fixed_dictionaries({"num_train_steps": st.integers(1, 2000), "beta_last": st.floats(1e-4, 0.9999)}),
    ),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ancestral": {"variance": st.one_of(st.sampled_from(["posterior", "beta", "predicted"]), st.floats(0.0, 1.0))},
    "ddim": {"eta": st.floats(0.0, 1.0)},
    "langevin": {"snr": powers(-3, 1), "corrector_steps": st.integers(1, 3)},
    "pc": {
        "snr": powers(-3, 1),
        "corrector_steps": st.integers(1, 3),
        "predictor": st.sampled_from(["identity", "ddim", "heun", "ancestral", "reverse_diffusion", "euler_maruyama"]),
        "corrector": st.sampled_from(["langevin", "none"]),
    },
    "probability_flow": {"rtol": powers(-6, 0), "atol": powers(-6, 0), "method": st.sampled_from(list(ODE_METHODS))},
    "scipy": {"rtol": powers(-6, -1), "atol": powers(-6, 0), "method": st.sampled_from(SCIPY_METHODS)},
    "torchsde": {"method": st.sampled_from(list(TORCHSDE_METHODS))},
}


@st.composite
def sdes(draw: Draw) -> Callable[[], sd.sdes.SDE]:
    """An SDE, still to be made: its parameters may be refused."""
    name = draw(st.sampled_from(SDES.names()))
    return functools.partial(SDES.build, name, **draw(st.one_of(st.just({}), PARAMETERS.get(name, st.just({})))))


@st.composite
def sampler_options(draw: Draw) -> dict[str, Any]:
    name = draw(st.sampled_from(samplers.names()))
    known = samplers.config(name)
    free = {"num_steps": st.integers(1, 7), "grid": st.sampled_from(GRIDS.names())}
    free |= {"t_min": st.one_of(st.just(0.0), T_MIN), "denoise": st.booleans()} | OPTIONS.get(name, {})
    return {"name": name} | draw(st.fixed_dictionaries({k: v for k, v in free.items() if k in known}))


def denoiser(sde: sd.sdes.SDE, kind: str, shape: tuple[int, ...], label: str) -> sd.AbstractDenoiser:
    """An exact one of two points or of a wide law, or a bounded network of one prediction and label."""
    if kind in PREDICTIONS:
        return sd.Denoiser(lambda x, label: torch.tanh(x), sde, prediction=kind, noise_label=label)
    points = torch.linspace(-1.0, 1.0, 2 * torch.Size(shape).numel(), dtype=torch.float64).reshape(2, *shape)
    return sd.Empirical(points, bandwidth={"points": 0.0, "law": 0.5}[kind]).denoiser(sde)


KINDS = st.sampled_from(["points", "law", *PREDICTIONS])
LABELS = st.sampled_from(NOISE_LABELS.names())


def finite(run: Callable[[], Tensor | list[Tensor]]) -> list[Tensor]:
    """Return what it gives, which must be finite; nothing if it refuses its input in one line."""
    refused = ""
    try:
        found = run()
    except sd.InputError as error:
        found, refused = [], str(error)
    assert "\n" not in refused
    tensors = [found] if isinstance(found, Tensor) else found
    for tensor in tensors:
        assert torch.isfinite(tensor).all(), tensor
    return tensors


FEW, MANY = 40, 600


def fuzzed(**strategies: Any) -> Callable[[Any], Any]:
    """Run a test on chosen examples: on a few, and where slow tests are run on many."""

    def decorate(test: Any) -> Any:
        def check(examples: int) -> None:
            settings = hypothesis.settings(
                max_examples=examples,
                derandomize=True,
                deadline=None,
                database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            settings(hypothesis.given(**strategies)(test))()

        check.__name__, check.__doc__ = test.__name__, test.__doc__
        sizes = [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)]
        return pytest.mark.parametrize("examples", sizes)(check)

    return decorate


MODELS = {"make": sdes(), "kind": KINDS, "label": LABELS, "shape": SHAPES, "dtype": DTYPES, "seed": SEEDS}


@fuzzed(options=sampler_options(), **MODELS)
def test_draws(
    make: Any, kind: str, label: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int, options: dict[str, Any]
) -> None:
    def run() -> Tensor:
        sampler = samplers.build(**options)
        return sampler.draw(denoiser(make(), kind, shape, label), (2, *shape), seed, dtype=dtype).x

    for x in finite(run):
        assert x.shape == (2, *shape)
        assert x.dtype == dtype


def data(shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float) -> Tensor:
    return scale * sd.NoiseStream(seed, range(2))(torch.empty(2, *shape, dtype=dtype))


SCALES = powers(-3, 2)
FLOW = {
    "divergence": st.sampled_from(["exact", "hutchinson"]),
    "probe_law": st.sampled_from(["rademacher", "gaussian"]),
    "probes": st.integers(1, 3),
    "t_min": st.one_of(st.none(), T_MIN),
    "rtol": powers(-5, -1),
    "atol": powers(-5, -1),
    "method": st.sampled_from(list(ODE_METHODS)),
    "max_steps": st.integers(1, 60),
    "check": st.integers(0, 2),
}


@fuzzed(options=st.fixed_dictionaries(FLOW), scale=SCALES, **MODELS)
def test_likelihoods(
    make: Any,
    kind: str,
    label: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    seed: int,
    options: dict[str, Any],
    scale: float,
) -> None:
    """A sample that is given up is NaN, and says why; no other is."""

    def run() -> list[Tensor]:
        model = denoiser(make(), kind, shape, label)
        found = sd.log_likelihood(model, data(shape, dtype, seed, scale), seed=seed, **options)
        solved = [i for i in range(2) if i not in found.reasons]
        assert found.log_prob[list(found.reasons)].isnan().all()
        return [found.log_prob[solved], found.latent[solved], found.nfe]

    finite(run)


CELLS = st.one_of(st.none(), powers(-3, 0))


@fuzzed(
    variance=st.one_of(st.sampled_from(["posterior", "beta", "predicted"]), st.floats(0.0, 1.0)),
    grid=st.sampled_from(GRIDS.names()),
    count=st.integers(1, 7),
    t_min=T_MIN,
    cell=CELLS,
    scale=SCALES,
    **MODELS,
)
def test_bounds(
    make: Any, kind: str, label: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int, **given: Any
) -> None:
    def run() -> list[Tensor]:
        sde, t_min, cell = make(), given["t_min"], given["cell"]
        model, x = denoiser(sde, kind, shape, label), data(shape, dtype, seed, given["scale"])
        noise = sd.NoiseStream(seed, range(2))
        continuous = sd.continuous_bound(model, x, noise, draws=2 * given["count"], t_min=t_min, cell=cell)
        times = model.round_t(GRIDS[given["grid"]](sde, given["count"], t_min))
        discrete = sd.discrete_bound(model, x, times, noise, variance=given["variance"], cell=cell)
        assert not continuous.std_error.isnan().any()  # of 1e19 nats, far from any data, it is infinite
        return [bound.total for bound in (continuous, discrete)]

    finite(run)


@fuzzed(times=st.sampled_from(TIMES.names()), t_min=T_MIN, weighting=st.sampled_from(WEIGHTINGS.names()), **MODELS)
def test_losses(
    make: Any, kind: str, label: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int, **given: Any
) -> None:
    """They and their gradients; times are within their bounds."""

    def run() -> list[Tensor]:
        sde = make()
        times = TIMES.build(given["times"], t_min=given["t_min"])
        x = data(shape, dtype, seed, 1.0).requires_grad_()
        objective = sd.DenoisingScoreMatching(times, given["weighting"])
        losses = objective(denoiser(sde, kind, shape, label), x, sd.NoiseStream(seed, range(2)))
        assert (losses >= 0.0).all()
        t, factor = times(sde, torch.tensor([1e-16, 0.3, 1.0 - 1e-16], dtype=torch.float64))
        assert ((t > 0.0) & (t <= sde.T)).all()
        return [losses, *torch.autograd.grad(losses.sum(), x), factor]

    finite(run)


@fuzzed(make=sdes(), grid=st.sampled_from(GRIDS.names()), count=st.integers(1, 40), t_min=T_MIN)
def test_grids(make: Any, grid: str, count: int, t_min: float) -> None:
    """From T to t_min, as many as asked for, none out of order."""

    def run() -> Tensor:
        sde = make()
        require_start(sde, t_min)
        times = GRIDS[grid](sde, count, t_min)
        assert len(times) == count
        assert (times.diff() <= 0.0).all()
        assert float(times[0]) == sde.T
        assert float(times[-1]) >= t_min
        return times

    finite(run)


@fuzzed(shape=SHAPES, seed=SEEDS, levels=st.integers(2, 256), size=st.integers(0, 3), noisy=st.booleans(), scale=SCALES)
def test_codecs(shape: tuple[int, ...], seed: int, levels: int, size: int, noisy: bool, scale: float) -> None:
    """There and back; also of no example at all."""
    indices = range(size)
    noise = sd.NoiseStream(seed, indices) if noisy and size else None
    grey = torch.arange(size * torch.Size(shape).numel()).remainder(levels).to(torch.uint8).reshape(size, *shape)
    codec = GreyLevels(levels)
    z, weight = codec.encode(grey, noise)
    assert torch.equal(codec.decode(z), grey)
    x = scale * torch.linspace(-1.0, 1.0, grey.numel()).reshape(grey.shape)
    columns = tuple(scale * (1.0 + i) for i in range(shape[0]))
    standardised = Standardised(tuple(-c for c in columns), columns)
    y, other = standardised.encode(x)
    torch.testing.assert_close(standardised.decode(y), x, rtol=1e-5, atol=1e-6 * scale * shape[0])
    for tensors in ((z, weight), (y, other)):
        finite(lambda both=tensors: list(both))
        assert tensors[1].shape == (size,)
        assert tensors[0].dtype == torch.float32
