"""The adaptive solver: accuracy, independence of neighbours, counts, failures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.ode import ODE_METHODS, solve_ode
from tests.conftest import time


def oscillator(rates: Tensor) -> object:
    """y'' = −ω² y for each sample its own ω, as (y, y'/ω)."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return rates[: len(y), None] * torch.stack([y[:, 1], -y[:, 0]], dim=1)

    return f


@pytest.mark.parametrize("method", ODE_METHODS)
def test_error_follows_the_tolerance(method: str) -> None:
    rates = torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64)
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(3, 2)
    exact = torch.stack([(2 * rates).cos(), -(2 * rates).sin()], dim=1)
    errors = []
    for tol in (1e-4, 1e-6, 1e-8):
        solution = solve_ode(oscillator(rates), y0, time(0.0), time(2.0), rtol=tol, atol=tol, method=method)  # type: ignore[arg-type]
        errors.append(float((solution.y - exact).abs().max()))
        assert errors[-1] < 200 * tol  # error per step tol, up to some 200 steps at the fastest rate
    assert errors[0] / errors[2] > 1e3
    assert torch.equal(solution.nfe, solution.nfe.sort().values)
    backwards = solve_ode(oscillator(rates), solution.y, time(2.0), time(0.0), rtol=1e-8, atol=1e-8)  # type: ignore[arg-type]
    torch.testing.assert_close(backwards.y, y0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("method", ODE_METHODS)
def test_steps_are_those_of_scipy(method: str, backwards: bool) -> None:
    """The first size, its changes, what is taken back, the counts: of one sample all are those of SciPy's solver."""
    ends, tolerances = ((3.0, 0.0) if backwards else (0.0, 3.0)), {"rtol": 3e-6, "atol": 1e-5}

    def f(t: Any, y: Any) -> Any:
        """Van der Pol's oscillator, driven: its fast parts make the solver take steps back."""
        pull = 8.0 * (1.0 - y[..., 0] ** 2) * y[..., 1] - y[..., 0] + 3.0 * t**2
        return (torch if isinstance(y, Tensor) else np).stack([y[..., 1], -pull if backwards else pull], -1)

    times = [ends[0]]
    start = torch.tensor([[1.3, -0.4]], dtype=torch.float64)
    ours = solve_ode(
        f, start, *map(time, ends), method=method, **tolerances, on_step=lambda step, t, y: times.append(float(t))
    )
    theirs = solve_ivp(f, ends, start[0].numpy(), method=ODE_METHODS[method], **tolerances)
    assert int(ours.rejected) == len(times) - len(set(times)) > 0
    np.testing.assert_allclose(list(dict.fromkeys(times)), theirs.t, rtol=1e-6)
    np.testing.assert_allclose(ours.y[0].numpy(), theirs.y[:, -1], rtol=1e-6)
    assert int(ours.nfe) == theirs.nfev


def test_a_sample_does_not_feel_its_neighbours() -> None:
    """Same bits and same count alone and beside samples that are 50 times stiffer."""
    rates = torch.tensor([2.0, 100.0, 2.0, 0.1], dtype=torch.float64)
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)
    together = solve_ode(oscillator(rates), y0, time(0.0), time(1.0))  # type: ignore[arg-type]
    alone = solve_ode(oscillator(rates[:1]), y0[:1], time(0.0), time(1.0))  # type: ignore[arg-type]
    assert torch.equal(together.y[0], alone.y[0])
    assert together.nfe[0] == together.nfe[2] == alone.nfe[0]
    assert together.nfe[1] > 5 * together.nfe[0] > 5 * together.nfe[3]
    assert together.evaluations == together.nfe.max() == together.nfe[1]


def test_counts_are_those_of_the_calls() -> None:
    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return -y

    solution = solve_ode(f, torch.ones(2, 1), time(0.0), time(1.0))
    assert solution.evaluations == calls
    assert (solution.nfe == 2 + 6 * ((calls - 2) // 6)).all()


def test_failures() -> None:
    y = torch.ones(1, 1, dtype=torch.float64)
    blow_up = solve_ode(lambda t, y: y**2 + torch.nan, y, time(0.0), time(2.0))
    assert torch.isnan(blow_up.y).all()
    assert "underflowed" in blow_up.reasons()[0]
    rates = torch.tensor([1.0, 1000.0], dtype=torch.float64)
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(2, 2)
    cut = solve_ode(oscillator(rates), y0, time(0.0), time(1.0), max_steps=40)  # type: ignore[arg-type]
    assert torch.isfinite(cut.y[0]).all()  # what fails leaves the others alone
    assert torch.isnan(cut.y[1]).all()
    assert list(cut.reasons()) == [1]
    assert "max_steps" in cut.reasons()[1]
    for bad, match in (({"rtol": 0.0}, "rtol=0"), ({"atol": -1.0}, "atol=-1"), ({"method": "rk4"}, "method='rk4'")):
        with pytest.raises(sd.InputError, match=match):
            solve_ode(lambda t, y: -y, y, time(0.0), time(1.0), **bad)  # type: ignore[arg-type]
