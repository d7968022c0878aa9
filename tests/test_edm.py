"""Karras' stochastic sampler: his algorithm on a VE SDE, Heun's method without churn, an exact law with any churn."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import samplers
import sde_diffusion as sd
from sde_diffusion.evaluation.verification import gaussian_error, three_modes
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number
from sde_diffusion.sdes import SDE

FREE = {"s_min": 0.0, "s_max": 1e9}


class Watched(sd.AbstractDenoiser):
    """An exact denoiser that keeps the times it is asked at."""

    def __init__(self, sde: SDE) -> None:
        super().__init__(sde)
        self.exact, self.times = three_modes().denoiser(sde), []  # type: ignore[var-annotated]

    def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> sd.Prediction:
        self.times.append(t.t if isinstance(t, NoiseLevel) else t)
        return self.exact(x, t)


def algorithm_2(
    denoise: Any, x: Tensor, t: list[float], z: list[Tensor], churn: float, low: float, high: float, s_noise: float
) -> Tensor:
    """A second statement of Algorithm 2 of arXiv:2206.00364, in its symbols: t are noise levels σ, the last one 0."""
    n = len(t) - 1
    for i in range(n):
        gamma = min(churn / n, math.sqrt(2.0) - 1.0) if low <= t[i] <= high else 0.0
        t_hat = t[i] + gamma * t[i]
        x_hat = x + math.sqrt(t_hat**2 - t[i] ** 2) * s_noise * z[i]
        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0.0:
            d_next = (x - denoise(x, t[i + 1])) / t[i + 1]
            x = x_hat + (t[i + 1] - t_hat) * (0.5 * d + 0.5 * d_next)
    return x


@pytest.mark.parametrize("s_noise", [1.0, 1.007])
@pytest.mark.parametrize(("churn", "low", "high"), [(30.0, 0.01, 1.0), (4.0, 0.05, 50.0), (1000.0, 0.05, 20.0)])
@pytest.mark.parametrize("num_steps", [2, 18])
def test_on_a_ve_sde_it_is_algorithm_2(num_steps: int, churn: float, low: float, high: float, s_noise: float) -> None:
    """With the authors' own σ from 0.002 to 80 and their grid; the same noise, so that only rounding is left."""
    sde = sd.VESDE(sigma_min=0.002, sigma_max=80.0)
    exact = three_modes().denoiser(sde)
    sampler = samplers.build(
        "edm", num_steps=num_steps, grid="karras", s_churn=churn, s_min=low, s_max=high, s_noise=s_noise
    )
    times = sampler.times(exact)  # type: ignore[attr-defined]
    sigmas = [*sde.sigma(times).tolist(), 0.0]
    generator = torch.Generator().manual_seed(0)
    x, *z = torch.randn(num_steps + 1, 5, 2, generator=generator, dtype=torch.float64)
    used = iter([noise for noise, sigma in zip(z, sigmas, strict=False) if low <= sigma <= high])

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return exact(x, sde.time_of_log_snr(torch.tensor(-2.0 * math.log(sigma), dtype=torch.float64))).x0

    found = sampler.sample(exact, 80.0 * x, lambda x, t, s: next(used)).x
    expected = algorithm_2(denoise, 80.0 * x, sigmas, z, churn, low, high, s_noise)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("grid", ["log_snr", "uniform"])
def test_without_churn_it_is_heun(sde: SDE, grid: str) -> None:
    denoiser = three_modes().denoiser(sde)
    drawn = [
        samplers.build(name, num_steps=9, grid=grid, **options).draw(denoiser, (4, 2), seed=1).x
        for name, options in (("heun", {}), ("edm", {"s_churn": 0.0, **FREE}), ("edm", {"s_min": 1e8, "s_max": 1e9}))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert not samplers.build("edm", s_churn=0.0).stochastic


@pytest.mark.parametrize("s_churn", [1.0, 10.0, 40.0])
def test_the_law_is_exact_in_the_limit_at_any_strength(sde: SDE, s_churn: float) -> None:
    """Order 2 on a Gaussian, once γ = S_churn/N is below its cap; a noise of another size leaves an error."""

    def error(num_steps: int, **options: float) -> float:
        sampler = samplers.build(
            "edm", num_steps=num_steps, t_min=0.1, denoise=False, s_churn=s_churn, **{**FREE, **options}
        )
        run = lambda d, x, noise: sampler.sample(d, x, noise).x  # noqa: E731
        return gaussian_error(run, sde, 0.1, t_start=sde.t_max).total

    coarse, fine = error(100), error(200)
    assert s_churn / 100 < math.sqrt(2.0) - 1.0
    assert math.log2(coarse / fine) > 2.0 - 0.15
    assert error(200, s_noise=1.1) > 10.0 * fine


@pytest.mark.parametrize("s_churn", [1.0, 1e6])
def test_the_noise_is_raised_up_to_T_and_at_no_interval(sde: SDE, s_churn: float) -> None:
    """The first step, from T, has no churn; others have γ ≤ √2 − 1, and their noise belongs to no interval."""
    asked: list[float] = []

    def noise(x: Tensor, t: sd.NoiseLevel, s: sd.NoiseLevel) -> Tensor:
        assert t is s
        asked.append(float(t.t))
        return torch.zeros_like(x)

    denoiser = Watched(sde)
    sampler = samplers.build("edm", num_steps=8, grid="uniform", s_churn=s_churn, **FREE)
    times = sampler.sample(denoiser, torch.ones(1, 2, dtype=torch.float64), noise).times[:-1].tolist()
    assert asked == times[1:-1]
    *seen, last = denoiser.times
    assert last == times[-1]
    assert max(seen) == times[0] == sde.t_max
    gamma = min(s_churn / 8, math.sqrt(2.0) - 1.0)
    for (t, s), raised, end in zip(pairwise(times), seen[::2], seen[1::2], strict=True):
        assert end == s
        wanted = min(sde.at(sde.t_max).ratio, (1.0 + gamma) * sde.at(t).ratio)
        assert sde.at(raised).ratio == pytest.approx(wanted, rel=1e-9)


def test_a_network_of_discrete_times_is_asked_at_its_own() -> None:
    seen: list[float] = []

    def net(x: Tensor, label: Tensor) -> Tensor:
        seen.extend(label.tolist())
        return 0.1 * x

    denoiser = sd.Denoiser(net, sd.VPSDE(), noise_label=sd.labels.Index(100))
    result = samplers.build("edm", num_steps=30, s_churn=10.0, grid="uniform").draw(denoiser, (1, 3))
    assert all(label == round(label) for label in seen)
    assert len(set(seen)) > len(result.times)  # raised ones among them


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"s_churn": -1.0}, r"s_churn=-1\.0: expected a number of at least 0"),
        ({"s_churn": math.inf}, "s_churn=inf"),
        ({"s_churn": "much"}, "s_churn='much'"),
        ({"s_min": -0.1}, r"s_min=-0\.1"),
        ({"s_min": 2.0, "s_max": 1.0}, r"s_max=1\.0: expected a number of at least 2; s_min is 2"),
        ({"s_max": math.nan}, "s_max=nan"),
        ({"s_noise": 0.0}, r"s_noise=0\.0: expected a number above 0"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(sd.InputError, match=match) as caught:
        samplers.build("edm", **options)
    assert "\n" not in str(caught.value)
