"""Brownian paths: increments are functions of the interval; strong order; a rejected step does not bias the law."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import Tensor

import samplers
import sde_diffusion as sd
from sde_diffusion.brownian import clock
from sde_diffusion.evaluation.verification import check_mixture, three_modes
from sde_diffusion.noise import stream
from sde_diffusion.ops import add_scaled_, sqrt
from sde_diffusion.types import Callback, NoiseFn

SDE = sd.VPSDE()


def increment(path: sd.BrownianPath, x: Tensor, t: float, s: float) -> Tensor:
    """W(c_s) − W(c_t)."""
    return path(x, SDE.at(t), SDE.at(s)) * math.sqrt(clock(SDE.at(s)) - clock(SDE.at(t)))


def test_covariance_is_the_smaller_time() -> None:
    path, x = sd.BrownianPath(0, range(4000)), torch.empty(4000, 5, dtype=torch.float64)
    times = [0.1, 0.25, 0.3, 0.300004, 0.5, 0.77, 1.0]
    w = torch.stack([path.at(t, x).flatten() for t in times])
    exact = torch.tensor([[min(a, b) for a in times] for b in times], dtype=torch.float64)
    n = w.shape[1]
    error = (exact**2 + exact.diagonal()[:, None] * exact.diagonal()).sqrt() / math.sqrt(n)
    assert ((w @ w.T / n - exact).abs() < 5.0 * error).all()
    step = (w[3] - w[2]) / math.sqrt(4e-6)  # the smallest interval that is resolved
    assert stats.kstest(step.numpy(), "norm").pvalue > 1e-4
    coarse = sd.BrownianPath(0, range(4000), generations=1)  # all that is below a half in one tent
    for t in (0.2, 0.6, 0.95):
        assert abs(float(coarse.at(t, x).var()) - t) < 5.0 * t * math.sqrt(2 / n)


@pytest.mark.parametrize("generations", [1, 2, 7, 18])
def test_heights_of_the_tents_have_the_variance_of_the_path(generations: int) -> None:
    """Var W(t) = t is the sum of their squares, at every single time and whatever the number of generations."""
    u = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64)
    _, heights = sd.BrownianPath(0, range(1), generations=generations)._tents(u)
    torch.testing.assert_close(heights.square().sum(dim=0), u, rtol=0.0, atol=1e-12)


def test_increments_are_functions_of_the_interval() -> None:
    """They add up, in whatever order they are asked for; a sample's are its own, alone or in a batch."""
    x = torch.empty(8, 2, 3, dtype=torch.float64)
    path, other = sd.BrownianPath(5, range(8)), sd.BrownianPath(5, range(8))
    whole = increment(path, x, 0.9, 0.1)
    points = [0.9, 0.77, 0.5, 0.4999, 0.1]
    parts = [increment(other, x, t, s) for t, s in reversed(list(pairwise(points)))]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(increment(other, x, 0.9, 0.1), whole)
    alone = sd.BrownianPath(5, [6])
    torch.testing.assert_close(increment(alone, x[:1], 0.9, 0.1)[0], whole[6])
    t = torch.linspace(0.5, 0.9, 8, dtype=torch.float64)
    of_each = path(x, SDE.at(t), SDE.at(t - 0.3))
    for i in range(8):
        one = other(x, SDE.at(float(t[i])), SDE.at(float(t[i] - 0.3)))
        torch.testing.assert_close(of_each[i], one[i])
    assert (increment(sd.BrownianPath(6, range(8)), x, 0.9, 0.1) - whole).abs().max() > 0.1
    assert path(x.float(), SDE.at(0.9), SDE.at(0.1)).dtype == torch.float32


def test_a_half_is_a_bridge() -> None:
    """Given the whole, the first half has mean whole/2 and variance h/4, in units of the clock."""
    path, x = sd.BrownianPath(1, range(20_000)), torch.empty(20_000, 1, dtype=torch.float64)
    w = [path.at(c, x)[:, 0] for c in (0.31, 0.57, 0.83)]
    whole, half = w[2] - w[0], w[1] - w[0]
    rest = half - 0.5 * whole
    assert abs(float(rest.var()) - 0.13) < 5 * 0.13 * math.sqrt(2 / 20_000)
    assert abs(float(torch.corrcoef(torch.stack([rest, whole]))[0, 1])) < 5 / math.sqrt(20_000)


def test_fresh_noise_where_there_is_no_interval() -> None:
    """It is that of a stream of its own under the same seed, and knows nothing of the path."""
    path, x, level = sd.BrownianPath(3, range(2)), torch.empty(2, 20_000), SDE.at(0.4)
    first, second = path(x, level, level), path(x, level, SDE.at(0.4))
    beside = sd.NoiseStream(stream(3, "noise beside a path"), range(2))
    assert torch.equal(first, beside(x))
    assert torch.equal(second, beside(x))
    flat = torch.cat([first, second, path(x, SDE.at(0.9), level), path(x, level, SDE.at(0.1))])
    assert (torch.corrcoef(flat) - torch.eye(8)).abs().max() < 5 / math.sqrt(20_000)


@pytest.mark.parametrize("name", ["euler_maruyama", "torchsde"])
def test_strong_order_on_one_path(name: str) -> None:
    """With additive noise Euler-Maruyama, ours and theirs, has strong order 1."""
    law, n = three_modes(), 100
    start = torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    method = {"method": "euler"} if name == "torchsde" else {}

    def run(num_steps: int) -> Tensor:
        sampler = samplers.build(name, num_steps=num_steps, denoise=False, t_min=0.2, **method)
        return sampler.sample(law.denoiser(SDE), start, sd.BrownianPath(0, range(n))).x

    reference = run(1024)
    errors = [float((run(k) - reference).norm(dim=1).mean()) for k in (32, 64, 128)]
    assert errors[0] > 1.7 * errors[1] > 2.9 * errors[2]


@dataclass(frozen=True, kw_only=True)
class Adaptive(samplers.Sampler):
    """Euler-Maruyama whose step is halved where two halves of it disagree with it, and else made longer: from outside.

    One step size serves the batch. A step that is taken back is tried again on the same path.
    """

    order, stochastic, nfe_per_step, reference = None, True, None, "none"
    tolerance: float = 0.02

    def integrate(
        self, denoiser: sd.AbstractDenoiser, x: Tensor, noise: NoiseFn, callback: Callback | None = None
    ) -> samplers.Path:
        sde, times, size = denoiser.sde, [denoiser.sde.T], 0.5
        stop = self.stop_time(sde)

        def step(x: Tensor, t: float, s: float) -> Tensor:
            here, there = sde.at(t), sde.at(s)
            mean = denoiser(x, here).combine(x=1.0 - here.f * (t - s), score=here.g**2 * (t - s))
            return add_scaled_(mean, here.g * sqrt(t - s), noise(x, here, there))

        samplers.report(callback, 0, times[0], x)
        while times[-1] > stop:
            t = times[-1]
            s = max(t - size, stop)
            middle = 0.5 * (t + s)
            halves = step(step(x, t, middle), middle, s)
            error = float((halves - step(x, t, s)).abs().mean())
            size = (t - s) * (1.4 if error <= self.tolerance else 0.5)
            if error <= self.tolerance:
                x = halves
                times.append(s)
                samplers.report(callback, len(times) - 1, s, x)
        return samplers.Path(x, torch.tensor(times, dtype=torch.float64))


def test_a_rejected_step_does_not_bias_the_law() -> None:
    law, n = three_modes(), 20_000
    denoiser = law.denoiser(SDE)
    rejected: list[float] = []

    class Watched(sd.BrownianPath):
        def __call__(self, x: Tensor, t: sd.NoiseLevel, s: sd.NoiseLevel) -> Tensor:
            rejected.append(float(t.t))
            return super().__call__(x, t, s)

    sampler = Adaptive(t_min=0.02, denoise=False, tolerance=0.008)
    noise = Watched(0, range(n), generations=12)
    x = noise(torch.empty(n, 2, dtype=torch.float64), SDE.at(1.0), SDE.at(1.0))
    seen: list[float] = []
    result = sampler.sample(denoiser, x, noise, callback=lambda i, t, x: seen.append(float(t[0])))
    assert seen == result.times.tolist()
    steps = len(result.times) - 1
    assert len(rejected) > 3 * (steps + 10)  # more than a few were taken back
    assert result.nfe == result.network_calls == len(rejected) - 1
    check = check_mixture(result.x, SDE, 0.02)
    assert check.weights_p > 1e-4
    assert check.weight_error < 0.02


@pytest.mark.parametrize(("options", "match"), [({"seed": -1}, "seed=-1"), ({"generations": 0}, "generations=0")])
def test_bad_input(options: dict[str, float], match: str) -> None:
    with pytest.raises(sd.InputError, match=match):
        sd.BrownianPath(**{"seed": 0, "indices": range(2), **options})  # type: ignore[arg-type]
