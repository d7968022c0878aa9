"""Restart sampling: the paper's algorithm on a VE SDE, an exact law in the limit, counted evaluations, its options."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import samplers
import sde_diffusion as sd
from sde_diffusion.evaluation.verification import check_mixture, gaussian_error, three_modes
from sde_diffusion.sdes import SDE
from tests.conftest import time
from tests.dpmpp_2m import DPMSolverPP2M

INTERVALS = [(0.2, 0.9, 3, 4), (1.5, 8.0, 1, 2)]


def heun(denoise: Any, x: Tensor, sigmas: list[float]) -> Tensor:
    for t, s in pairwise(sigmas):
        d = (x - denoise(x, t)) / t
        end = x + (s - t) * d
        x = x + (s - t) * 0.5 * (d + (end - denoise(end, s)) / s)
    return x


def test_on_a_ve_sde_it_is_algorithm_1() -> None:
    """A second statement of it in σ, with shared noise; where a restart begins and its grid are as documented."""
    sde = sd.VESDE(sigma_min=0.002, sigma_max=80.0)
    exact = three_modes().denoiser(sde)
    part = {"name": "heun", "grid": "karras"}
    sampler = samplers.build("restart", num_steps=19, sampler=part, intervals=INTERVALS, denoise=False)
    sigmas = sde.sigma(samplers.build("heun", num_steps=19, grid="karras", denoise=False).times(exact)).tolist()  # type: ignore[attr-defined]
    start, *z = torch.randn(5, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = iter(z)
    found = sampler.sample(exact, 80.0 * start, lambda x, t, s: next(ours))

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return exact(x, sde.time_of_log_snr(time(-2.0 * math.log(sigma)))).x0

    x, theirs, at = 80.0 * start, iter(z), 0
    for low, high, restarts, steps in reversed(INTERVALS):
        turn = next(i for i, sigma in enumerate(sigmas) if sigma <= low)
        x = heun(denoise, x, sigmas[at : turn + 1])
        way = [high * (sigmas[turn] / high) ** (i / steps) for i in range(steps + 1)]
        for _ in range(restarts):
            x = heun(denoise, x + math.sqrt(high**2 - sigmas[turn] ** 2) * next(theirs), way)
        at = turn
    x = heun(denoise, x, sigmas[at:])
    torch.testing.assert_close(found.x, x, rtol=1e-6, atol=1e-6)
    assert found.nfe == 2 * (19 + 3 * 4 + 1 * 2)


@pytest.mark.parametrize(
    ("part", "order"), [("heun", 2), ("ddim", 1), ("edm", 2), ("pc", 1)], ids=["heun", "ddim", "edm", "pc"]
)
def test_the_law_is_exact_in_the_limit(sde: SDE, part: str, order: int) -> None:
    """On a Gaussian, at the order of the part: what is added is the forward process itself."""
    known: dict[str, dict[str, Any]] = {
        "edm": {"s_churn": 0.0},
        "pc": {"predictor": "ddim", "corrector": "none", "grid": "log_snr"},
        "ddim": {"grid": "log_snr"},
    }

    def error(num_steps: int) -> float:
        intervals = [(0.6, 2.0, 2, num_steps // 4), (3.0, 9.0, 1, num_steps // 4)]
        chosen = {"name": part, **known.get(part, {})}
        sampler = samplers.build(
            "restart", num_steps=num_steps, sampler=chosen, intervals=intervals, t_min=0.1, denoise=False
        )
        assert (sampler.order, sampler.stochastic) == (order, True)
        return gaussian_error(lambda d, x, noise: sampler.sample(d, x, noise).x, sde, 0.1).total

    assert math.log2(error(64) / error(128)) > order - 0.15


def test_mode_weights(sde: SDE) -> None:
    """χ² of the counts of 2,000 samples; restarts high up let samples change their mode, and keep the weights."""
    sampler = samplers.build("restart", num_steps=60, intervals=(0.3, 5.0, 3, 20), t_min=0.02, denoise=False)
    x = sampler.draw(three_modes().denoiser(sde), (2000, 2), seed=0, dtype=torch.float64).x
    check = check_mixture(x, sde, 0.02)
    assert check.weights_p > 1e-4
    assert min(check.mean_p, check.spread_p) > 1e-6


@pytest.mark.parametrize("intervals", [(0.1, 1.0, 2, 0), (0.1, 1.0, 4, 7), INTERVALS])
@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("part", ["heun", "ddim"])
def test_evaluations_are_as_declared_and_the_way_is_seen(sde: SDE, part: str, denoise: bool, intervals: Any) -> None:
    sampler = samplers.build("restart", num_steps=13, sampler=part, intervals=intervals, denoise=denoise)
    seen: list[tuple[int, float]] = []
    result = sampler.draw(
        three_modes().denoiser(sde), (2, 2), callback=lambda step, t, x: seen.append((step, float(t[0])))
    )
    assert result.nfe == (13 - denoise) * (sampler.nfe_per_step or 0) + denoise + sampler.start_nfe
    assert [step for step, _ in seen] == list(range(len(result.times)))
    assert [t for _, t in seen] == result.times.tolist()
    rises = int((result.times.diff() > 0).sum())
    assert rises == sum(row.restarts for row in sampler.intervals)  # type: ignore[attr-defined]


def test_the_noise_is_fresh_at_each_restart() -> None:
    """On a Brownian path too: it belongs to no interval, which would be the same at each."""
    drawn: list[Tensor] = []
    path = sd.BrownianPath(0, range(2))

    def noise(x: Tensor, t: sd.NoiseLevel, s: sd.NoiseLevel) -> Tensor:
        drawn.append(path(x, t, s))
        return drawn[-1]

    sampler = samplers.build("restart", num_steps=9, intervals=(0.1, 1.0, 3, 2))
    sampler.sample(three_modes().denoiser(sd.VPSDE()), torch.ones(2, 2), noise)
    assert len({float(z[0, 0]) for z in drawn}) == len(drawn) == 3


def test_a_part_of_its_own_is_restarted_with_its_memory_empty() -> None:
    """A multistep scheme keeps its order: each way down begins without what was remembered on another."""
    sde = sd.VPSDE()

    def error(num_steps: int) -> float:
        sampler = samplers.build(
            "restart",
            num_steps=num_steps,
            sampler=DPMSolverPP2M(),
            intervals=(0.6, 2.0, 2, num_steps // 4),
            t_min=0.1,
            denoise=False,
        )
        return gaussian_error(lambda d, x, noise: sampler.sample(d, x, noise).x, sde, 0.1).total

    assert math.log2(error(64) / error(128)) > 2.0 - 0.15


def test_options_are_those_of_the_whole_and_of_the_part() -> None:
    sampler: Any = samplers.build("restart", num_steps=7, sampler={"name": "heun", "grid": "karras"})
    assert (sampler.sampler.grid, sampler.sampler.num_steps) == ("karras", 7)
    assert sampler.options()["sampler"] == {"name": "heun", "grid": "karras"}
    assert samplers.build("restart").options()["sampler"] == "heun"
    for found in (sampler, samplers.build("restart", sampler="ddim", intervals=INTERVALS, denoise=False)):
        assert samplers.build("restart", **found.options()) == found
    lists = [list(row) for row in INTERVALS]  # as a file has them
    assert samplers.build("restart", intervals=lists) == samplers.build("restart", intervals=INTERVALS)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_steps": 0}, "num_steps=0"),
        ({"sampler": "ancestral"}, "sampler='ancestral': expected a deterministic sampler; restarts bring the noise"),
        ({"sampler": {"name": "ddim", "eta": 0.5}}, "expected a deterministic sampler"),
        ({"sampler": "pc"}, "sampler='pc': expected a deterministic sampler"),
        ({"sampler": "probability_flow"}, "sampler='probability_flow': .* no single steps"),
        ({"sampler": "restart"}, "sampler='restart': .* no single steps"),
        ({"sampler": "huen"}, "did you mean 'heun'"),
        ({"sampler": {"name": "heun", "num_steps": 7}}, r"sampler\.num_steps=7: expected that of restart, 50"),
        ({"intervals": ()}, r"intervals=\(\): expected rows"),
        ({"intervals": 0.1}, r"intervals=0\.1: expected rows"),
        ({"intervals": (0.1, 1.0)}, r"intervals=\(0\.1, 1\.0\): expected rows"),
        ({"intervals": ((0.1, 1.0, 2, 3), 5)}, "expected rows"),
        ({"intervals": (-0.1, 1.0, 2)}, r"intervals: low=-0\.1"),
        ({"intervals": (1.0, 1.0, 2)}, r"intervals: high=1\.0: expected a number above 1; low is 1"),
        ({"intervals": (0.1, math.inf, 2)}, "intervals: high=inf"),
        ({"intervals": (0.1, 1.0, 0)}, "intervals: restarts=0"),
        ({"intervals": (0.1, 1.0, 1, 0.5)}, r"intervals: steps=0\.5"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(sd.InputError, match=match) as caught:
        samplers.build("restart", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [(0.001, 0.005, 2), (1.0, 1e4, 2)])
def test_an_interval_that_the_way_does_not_meet_is_refused(row: Any) -> None:
    with pytest.raises(sd.InputError, match=r"intervals: high=.*: expected a number above 0\.0\d+ and up to 152"):
        samplers.build("restart", intervals=row).draw(three_modes().denoiser(sd.VPSDE()), (1, 2))
