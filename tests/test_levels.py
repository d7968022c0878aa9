"""Noise levels: floats on a grid, tensors for times of each sample, one formula for both."""

from __future__ import annotations

import math

import pytest
import torch

import sde_diffusion as sd
from sde_diffusion import ops
from sde_diffusion.levels import transition
from sde_diffusion.sdes import SDE
from tests.conftest import time

NAMES = ("t", "alpha", "sigma", "log_snr", "f", "g", "d_alpha", "d_sigma", "radius", "ratio")


def test_a_number_a_grid_and_times_of_each_sample_agree(sde: SDE) -> None:
    times = torch.tensor([0.9, 0.5003, 0.1, 1e-3], dtype=torch.float64)
    grid, batch = sde.levels(times), sde.at(times)
    for i, level in enumerate(grid):
        for name in NAMES:
            value = getattr(level, name)
            assert isinstance(value, float)
            for other in (sde.at(float(times[i])), sde.at(times[i])):
                assert getattr(other, name) == pytest.approx(value, rel=1e-12)
            assert float(getattr(batch, name)[i]) == pytest.approx(value, rel=1e-12)
    assert grid[0].alpha == float(sde.alpha(times)[0])
    assert grid[0].sigma == float(sde.sigma(times)[0])
    assert (grid[1].f, grid[1].g) == tuple(float(a[1]) for a in sde.coefficients(times))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_like_shapes_and_casts(sde: SDE, dtype: torch.dtype) -> None:
    x = torch.zeros(3, 2, 4, 4, dtype=dtype)
    single = torch.tensor([0.3, 0.6, 0.9])  # float32 times are read in float64
    level = sde.at(single)
    assert level.alpha.dtype == torch.float64  # type: ignore[union-attr]
    here = level.like(x)
    for name in NAMES:
        value = getattr(here, name)
        assert value.shape == (3, 1, 1, 1)
        assert (value * x).dtype == value.dtype == dtype
    grid = sde.at(0.3)
    assert grid.like(x) is grid
    assert (grid.alpha * x).dtype == dtype


def test_slopes_are_derivatives(sde: SDE) -> None:
    t = torch.tensor([0.1003, 0.5003, 0.9003], dtype=torch.float64, requires_grad=True)
    for name, of in (("d_alpha", sde.alpha), ("d_sigma", sde.sigma)):
        exact = torch.autograd.grad(of(t).sum() + 0.0 * t.sum(), t)[0]
        torch.testing.assert_close(getattr(sde.at(t.detach()), name), exact, rtol=1e-8, atol=1e-10)


def test_rates_are_computed_when_they_are_asked_for() -> None:
    asked = 0

    class Watched(sd.VPSDE):
        def coefficients(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            nonlocal asked
            asked += 1
            return super().coefficients(t)

    levels = Watched().levels(torch.linspace(1.0, 0.1, 7, dtype=torch.float64))
    assert asked == 0
    assert levels[0].f < 0.0
    once = asked
    assert all(level.f < 0.0 < level.d_sigma for level in levels)
    assert asked == once


def test_log_snr_is_infinite_where_one_of_them_vanishes() -> None:
    class Straight(SDE):
        """α = 1 − t and σ = t: nothing but noise at 1, nothing but data at 0."""

        def alpha(self, t: torch.Tensor) -> torch.Tensor:
            return 1.0 - t

        def sigma(self, t: torch.Tensor) -> torch.Tensor:
            return t

        def coefficients(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return -1.0 / (1.0 - t), (2.0 * t / (1.0 - t)).sqrt()

    start, end = Straight().levels(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert (start.log_snr, end.log_snr) == (-math.inf, math.inf)
    assert (start.ratio, end.ratio) == (math.inf, 0.0)
    x0, x = torch.tensor([[0.5]]), torch.tensor([[2.0]])
    assert sd.Prediction(x, start, {"x0": x0}).eps.item() == 2.0
    assert sd.Prediction(x, end, {"x0": x}).x0.item() == 2.0


def test_transition_loses_nothing_in_small_steps(sde: SDE) -> None:
    """σ²_{t|s} = ∫ g² (α_t/α_r)² dr, by its midpoint for a step of 1e-9: 1 − α² of the definition keeps one digit."""
    t = 0.5003
    step = transition(sde.at(t), sde.at(t - 1e-9))
    _, g = sde.coefficients(time(t - 0.5e-9))
    assert step[1] == pytest.approx(float(g**2) * 1e-9, rel=1e-4)
    wide = transition(sde.at(0.9), sde.at(0.2))
    alpha, sigma = (lambda u: float(sde.alpha(time(u)))), (lambda u: float(sde.sigma(time(u))))
    assert wide[0] == pytest.approx(alpha(0.9) / alpha(0.2))
    assert wide[1] == pytest.approx(sigma(0.9) ** 2 - (wide[0] * sigma(0.2)) ** 2, rel=1e-9)


@pytest.mark.parametrize("value", [-2.0, 0.0, 1e-9, 0.7, 1000.0, math.inf])
@pytest.mark.parametrize("name", ["exp", "expm1", "log", "sqrt", "sin", "cos"])
def test_functions_of_floats_follow_those_of_tensors(name: str, value: float) -> None:
    if name in ("sin", "cos") and math.isinf(value):
        return
    of_float = getattr(ops, name)(value)
    of_tensor = getattr(ops, name)(torch.tensor(value, dtype=torch.float64))
    assert isinstance(of_float, float)
    assert of_float == pytest.approx(float(of_tensor), nan_ok=True)
    assert ops.divide(value, 0.0) == pytest.approx(float(torch.tensor(value) / 0.0), nan_ok=True)
