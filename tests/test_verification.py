"""What certifies: its p-values are right, it passes what is correct whatever the seed, and finds what is not."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import samplers
import sde_diffusion as sd
from sde_diffusion.evaluation.likelihood_certificate import certify_likelihood
from sde_diffusion.evaluation.verification import (
    ALLOWED,
    FALSE_ALARM,
    MIXTURE_SAMPLES,
    MIXTURE_T_END,
    certify,
    check_mixture,
    three_modes,
)
from sde_diffusion.levels import NoiseLevel, transition
from sde_diffusion.ops import sqrt
from sde_diffusion.sdes import SDES
from sde_diffusion.types import NoiseFn

SDE = sd.VPSDE()


def exact_samples(seed: int, n: int = MIXTURE_SAMPLES) -> Tensor:
    """Of the mixture at the end time, with no sampler."""
    random = torch.Generator().manual_seed(seed)
    x0 = three_modes().sample(n, random)
    mean, std = SDE.marginal_prob(x0, torch.tensor(MIXTURE_T_END, dtype=torch.float64))
    return mean + std * torch.randn(x0.shape, dtype=torch.float64, generator=random)


def test_p_values_are_below_a_number_no_more_often_than_it() -> None:
    """Of exact samples, with nothing allowed for; 400 seeds, within 5 standard errors of the share."""
    checks = [check_mixture(exact_samples(seed), SDE, MIXTURE_T_END) for seed in range(400)]
    for name in ("weights_p", "mean_p", "spread_p"):
        found = np.array([getattr(check, name) for check in checks])
        for q in (0.01, 0.05, 0.2):
            assert (found < q).mean() <= q + 5.0 * (q * (1 - q) / 400) ** 0.5, name
        assert (found < 0.2).mean() > 0.05, name  # and they do vary
    assert min(check.smallest_p for check in checks) > 1e-6  # of 1,200 p-values


@pytest.mark.parametrize("fault", ["a mode moved", "a mode lost", "mean", "spread"])
def test_faults_of_twice_what_is_allowed_are_found(fault: str) -> None:
    """In a run of all samplers on all SDEs, whose threshold is that of some 60 certificates, three p-values each."""
    law, x = three_modes(), exact_samples(0)
    nearest = torch.cdist(x, law.means).argmin(dim=1)
    if fault == "a mode moved":
        chosen = (nearest == 0).nonzero()[: int(2 * ALLOWED * len(x)), 0]
        x[chosen] += law.means[1] - law.means[0]
    elif fault == "a mode lost":
        x = x[nearest != 2]
    elif fault == "mean":
        x = x + 2 * ALLOWED * x.std(dim=0)
    else:
        centres = law.means[nearest]
        x = centres + (1 + 2 * ALLOWED) * (x - centres)
    assert check_mixture(exact_samples(0), SDE, MIXTURE_T_END, allowed=ALLOWED).smallest_p > 0.01
    assert check_mixture(x, SDE, MIXTURE_T_END, allowed=ALLOWED).smallest_p < FALSE_ALARM / 180


@dataclass(frozen=True, kw_only=True)
class TooFast(samplers.GridSampler[None]):
    """Reverse diffusion with 2 % too much drift."""

    order, stochastic, nfe_per_step, reference = 1, True, 1, "none"  # type: ignore[assignment]

    def step(
        self, denoiser: sd.AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: None, noise: NoiseFn
    ) -> tuple[Tensor, None]:
        alpha, beta = transition(t, s)
        p = denoiser(x, t)
        return x + 1.02 * ((1.0 - alpha) * x + beta * p.score) + sqrt(beta) * noise(x, t, s), None


def test_two_percent_of_drift_are_found_whatever_the_seed() -> None:
    """By the Gaussian, where nothing is random: a part of the error does not fall with the steps."""
    for seed, sde in enumerate((SDE, sd.VESDE())):
        failures = certify(TooFast, ("num_steps", "grid"), sde, seed).failures
        assert any("standard deviations with infinitely many steps" in failure for failure in failures), failures


@pytest.mark.slow
@pytest.mark.parametrize("name", ["langevin", "pc", "heun"])
def test_no_seed_fails_correct_code(name: str) -> None:
    """200 seeds of what has most bias, of what corrects and of what has least: none is below a run's threshold."""
    options: dict[str, Any] = samplers.config(name)
    certificate = certify(functools.partial(samplers.build, name), options, SDE)
    assert not certificate.failures
    steps = 80 if certificate.declared == 2 else 500
    final = samplers.build(name, num_steps=steps, t_min=MIXTURE_T_END, denoise=False)
    denoiser = three_modes().denoiser(SDE)
    for seed in range(200):
        x = final.draw(denoiser, (MIXTURE_SAMPLES, 2), seed, dtype=torch.float64).x
        check = check_mixture(x, SDE, MIXTURE_T_END, final.limit_variance, ALLOWED)
        assert check.smallest_p > FALSE_ALARM / 180, seed


@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES.names())
def test_no_seed_fails_the_likelihood(sde: str) -> None:
    for seed in range(20):
        assert not certify_likelihood(SDES.build(sde), seed, FALSE_ALARM / 60).failures, seed
