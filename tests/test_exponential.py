"""Exponential integrators: their weights against quadrature, the order that each choice of options declares, starts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy.integrate import quad

import samplers
import sde_diffusion as sd
from samplers.exponential import interpolate, moments, weights
from sde_diffusion.analytic import Gaussian
from sde_diffusion.evaluation.verification import SLACK, probe
from sde_diffusion.sdes import SDES

LAWS = [(0.7, 0.25), (-1.0, 0.0625), (0.3, 2.0)]
"""Mean and variance of Gaussian data: of several, so that an error that changes its sign does not hide in one."""
FIRST, LAST = -1.5, 1.0
"""½ log SNR at the ends: from σ/α = 4.5, for from 150 the constants would hide a poor start."""


@pytest.mark.parametrize("zeta", [1e-6, 1e-3, 0.3, 0.999, 1.0, 3.0, 30.0, -1e-3, -0.5, -1.0, -2.5])
def test_weights_integrate_polynomials(zeta: float) -> None:
    """Against adaptive quadrature; 1e-12 of the largest is what the recursion by parts loses at ζ = 1."""
    for k, moment in enumerate(moments(zeta, 4)):
        truth = quad(lambda u, k=k: zeta * math.exp(-zeta * (1.0 - u)) * u**k, 0.0, 1.0, epsabs=0.0, epsrel=1e-12)[0]
        assert moment == pytest.approx(truth, rel=1e-10)
    nodes = [0.0, -0.7, 1.0, -2.1]
    cubic = [2.0, -1.0, 0.5, 0.25]
    found = sum(
        w * sum(c * u**k for k, c in enumerate(cubic)) for w, u in zip(weights(nodes, zeta), nodes, strict=True)
    )
    truth = sum(c * m for c, m in zip(cubic, moments(zeta, 4), strict=True))
    assert found == pytest.approx(truth, rel=1e-9)


def test_an_infinite_step_takes_the_prediction() -> None:
    assert moments(math.inf, 1) == [1.0]


def test_fixed_weights_are_those_of_equal_steps() -> None:
    """Adams and Bashforth's coefficients follow from the polynomial through 0, −1, −2, −3."""
    for count, fixed in enumerate(samplers.ipndm.FIXED, start=1):
        found = interpolate([1.0 / (k + 1) for k in range(count)], [-float(j) for j in range(count)])
        assert found == pytest.approx(fixed, rel=1e-12)


def times(sde: sd.SDE, grid: str, steps: int) -> torch.Tensor:
    """A grid between the two levels."""
    ramp = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64)
    ends = torch.tensor([2.0 * FIRST, 2.0 * LAST], dtype=torch.float64)
    if grid == "uniform":
        first, last = sde.time_of_log_snr(ends)
        return first + (last - first) * ramp
    power = {"karras": -1.0 / 14.0, "rho": -0.5}.get(grid)
    if power is None:
        return sde.time_of_log_snr(ends[0] + (ends[1] - ends[0]) * ramp)
    first, last = torch.exp(power * ends)
    return sde.time_of_log_snr((first + (last - first) * ramp).log() / power)


def error(sampler: samplers.GridSampler[Any], sde: sd.SDE, grid: str, steps: int) -> float:
    """Root mean square error of mean and standard deviation at the end, over the laws, in standard deviations."""
    visited, total = times(sde, grid, steps), 0.0
    for mean, variance in LAWS:

        def exact(t: torch.Tensor, mean: float = mean, variance: float = variance) -> tuple[float, float]:
            level = sde.at(float(t))
            return level.alpha * mean, level.alpha**2 * variance + level.sigma**2

        run = lambda denoiser, x, noise: sampler.sample(denoiser, x, noise, times=visited).x  # noqa: E731
        found = probe(run, Gaussian([mean], [[variance]]).denoiser(sde)).push(*exact(visited[0]))
        truth = exact(visited[-1])
        total += (found[0] - truth[0]) ** 2 / truth[1] + (math.sqrt(found[1] / truth[1]) - 1.0) ** 2
    return math.sqrt(total / len(LAWS))


def slope(name: str, sde: str, grid: str, steps: int, **options: Any) -> tuple[float, float | None]:
    """The order measured between ``steps`` and twice as many, and the one declared."""
    on = grid if grid in ("uniform", "karras", "log_snr") else "uniform"
    pair = [samplers.build(name, num_steps=n, grid=on, denoise=False, **options) for n in (steps, 2 * steps)]
    errors = [error(sampler, SDES.build(sde), grid, n) for sampler, n in zip(pair, (steps, 2 * steps), strict=True)]
    return math.log2(errors[0] / errors[1]), pair[-1].order


STARTS = ("paper", "single_step")
CHOICES: list[tuple[str, dict[str, Any]]] = [
    *(
        ("dpm_solver", {"solver_order": k, "form": form, "start": start})
        for k, form, start in itertools.product((1, 2, 3), ("x0", "eps"), STARTS)
    ),
    *(
        ("dpm_solver", {"solver_order": k, "form": form, "method": "singlestep", "rule": rule})
        for k, form, rule in itertools.product((2, 3), ("x0", "eps"), ("midpoint", "exact"))
    ),
    *(("dpm_solver", {"solver_order": k, "tau": 1.0}) for k in (1, 2, 3)),
    *(
        ("unipc", {"solver_order": k, "variant": variant, "start": start})
        for k, variant, start in itertools.product((1, 2, 3), ("bh1", "bh2"), STARTS)
    ),
    *(("sa_solver", {"solver_order": k, "corrector_order": c}) for k, c in ((1, 0), (2, 0), (1, 2), (2, 2), (3, 3))),
    *(("sa_solver", {"solver_order": 2, "corrector_order": 3, "tau": 0.0, "start": start}) for start in STARTS),
    *(("deis", {"solver_order": k, "polynomial": p}) for k, p in itertools.product((1, 2, 3), ("t", "log_rho"))),
    *(("deis", {"solver_order": 3, "polynomial": p, "start": "single_step"}) for p in ("t", "log_rho")),
    *(("ipndm", {"solver_order": k, "variable_step": v}) for k, v in itertools.product((2, 4), (False, True))),
    *(("ipndm", {"solver_order": k, "variable_step": True, "start": "single_step"}) for k in (3, 4)),
]


def words(choice: tuple[str, dict[str, Any]]) -> str:
    return " ".join([choice[0], *(f"{key}={value}" for key, value in choice[1].items())])


@pytest.mark.parametrize("choice", CHOICES, ids=words)
def test_declared_order_is_reached(choice: tuple[str, dict[str, Any]]) -> None:
    name, options = choice
    measured, declared = slope(name, "vp", "log_snr", 48, **options)
    assert declared is not None
    assert measured >= declared - SLACK


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["log_snr", "uniform", "karras"])
@pytest.mark.parametrize("sde", SDES.names())
@pytest.mark.parametrize("choice", CHOICES, ids=words)
def test_declared_order_is_reached_everywhere(choice: tuple[str, dict[str, Any]], sde: str, grid: str) -> None:
    name, options = choice
    measured, declared = slope(name, sde, grid, 96, **options)
    assert declared is not None
    assert measured >= declared - SLACK


def test_fixed_coefficients_are_of_second_order_off_their_grid() -> None:
    """More they are not, which is why they do not declare it; on their grid, uniform in σ/α, they are of order 4."""
    options = {"solver_order": 4, "start": "single_step"}
    assert 1.85 <= slope("ipndm", "ve", "log_snr", 96, **options)[0] <= 2.15
    assert 1.85 <= slope("ipndm", "ve", "karras", 96, **options)[0] <= 2.15
    assert slope("ipndm", "ve", "rho", 192, **options)[0] >= 4.0 - 2.0 * SLACK


@pytest.mark.parametrize("tau", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("name", ["sa_solver", "dpm_solver"])
def test_the_law_is_exact_at_any_strength_of_the_noise(name: str, tau: float) -> None:
    """In the limit: with 20 times the steps the error of second order is 400 times smaller."""
    sde = SDES.build("vp")
    few, many = (error(samplers.build(name, tau=tau, num_steps=n, denoise=False), sde, "log_snr", n) for n in (10, 200))
    assert many < 1e-3
    assert many < few / 200.0


def test_a_start_by_single_steps_counts_its_evaluations() -> None:
    law = sd.GaussianMixture([1.0], [[0.0, 0.0]], [[[1.0, 0.0], [0.0, 2.0]]])
    for steps, name, order in itertools.product((1, 2, 3, 8), ("dpm_solver", "unipc", "deis", "ipndm"), (1, 2, 3)):
        sampler = samplers.build(name, num_steps=steps, solver_order=order, start="single_step")
        result = sampler.draw(law.denoiser(sd.VPSDE()), (3, 2))
        assert result.nfe == sampler.start_nfe + steps
        assert bool(result.x.isfinite().all())


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("dpm_solver", {"solver_order": 4}, "solver_order=4: expected 1 to 3"),
        ("dpm_solver", {"form": "v"}, "form='v': expected 'x0' or 'eps'"),
        ("dpm_solver", {"method": "singlestep", "tau": 1.0}, "tau=1.0: expected 0 with method 'singlestep'"),
        ("dpm_solver", {"method": "singlestep", "start": "single_step"}, "start='single_step': expected 'paper'"),
        ("dpm_solver", {"tau": -1.0}, "tau=-1.0"),
        ("unipc", {"variant": "bh3"}, "variant='bh3': expected 'bh1' or 'bh2'"),
        ("sa_solver", {"corrector_order": 5}, "corrector_order=5: expected 0 to 4"),
        ("deis", {"polynomial": "rho"}, "polynomial='rho': expected 't' or 'log_rho'"),
        ("ipndm", {"solver_order": 5}, "solver_order=5: expected 1 to 4"),
    ],
)
def test_bad_options_are_one_line(name: str, options: dict[str, Any], part: str) -> None:
    with pytest.raises(sd.InputError) as caught:
        samplers.build(name, **options)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
