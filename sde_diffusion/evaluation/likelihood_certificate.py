"""Certification of the likelihood against the closed form of a Gaussian, as of samplers in ``verification``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from sde_diffusion.analytic import Gaussian
from sde_diffusion.bounds import continuous_bound
from sde_diffusion.evaluation.significance import any_of, mean_p, two_sided
from sde_diffusion.evaluation.verification import FALSE_ALARM
from sde_diffusion.likelihood import log_likelihood
from sde_diffusion.noise import NoiseStream, generator, stream
from sde_diffusion.sde import SDE

PROBES = 200
"""Of Hutchinson's estimates that are compared with the exact divergence."""


@dataclass(frozen=True)
class LikelihoodCertificate:
    """What was measured of the likelihood on one SDE, on a correlated Gaussian in six dimensions.

    Attributes:
        error: largest |log p − closed form| in nats, exact divergence, tolerance 1e-7, the prior term accounted for.
        probes_p: p-value of Hutchinson's estimates from 200 probes, of 8 samples.
        prior_p: p-value of the mean cost of the prior, which is KL(p_T ‖ prior).
        bound_p: p-value of −log p above the continuous bound, which would then not be one.
        false_alarm: probability with which one of them fails where all is well.
    """

    error: float
    probes_p: float
    prior_p: float
    bound_p: float
    false_alarm: float = FALSE_ALARM

    @property
    def failures(self) -> list[str]:
        """Return what is wrong, in words; empty if all is well."""
        found = [] if self.error < 1e-4 else [f"log p off by {self.error:.1e} nats"]
        for name, p in (("probes", self.probes_p), ("prior", self.prior_p), ("bound", self.bound_p)):
            found += [] if p >= self.false_alarm / 3.0 else [f"{name} off (p = {p:.1e})"]
        return found


def certify_likelihood(sde: SDE, seed: int = 0, false_alarm: float = FALSE_ALARM) -> LikelihoodCertificate:
    """Measure likelihood and bound on one SDE against the closed form of a Gaussian."""
    from scipy.stats import norm

    random = generator(seed, "law")
    root = torch.randn(6, 6, generator=random, dtype=torch.float64) / 4.0
    law = Gaussian(root[0], root @ root.T + 0.05 * torch.eye(6, dtype=torch.float64))
    denoiser, many = law.denoiser(sde), law.sample(4000, random)
    x, start, end = many[:8], torch.tensor(1e-4, dtype=torch.float64), torch.tensor(sde.T, dtype=torch.float64)
    tight: dict[str, Any] = {"rtol": 1e-7, "atol": 1e-7, "t_min": float(start), "check": 0}
    exact = log_likelihood(denoiser, x, divergence="exact", **tight)
    prior_term = law.log_prob(exact.latent, sde, end) - sde.prior_logp(exact.latent)
    error = (exact.log_prob + prior_term - law.log_prob(x, sde, start)).abs().max()
    probed = log_likelihood(denoiser, x, probes=PROBES, seed=seed, **tight)

    mean, std = sde.marginal_prob(many, end)
    last = mean + std * torch.randn(many.shape, generator=random, dtype=many.dtype)
    cost = law.log_prob(last, sde, end) - sde.prior_logp(last) - law.prior_kl(sde)
    noise = NoiseStream(stream(seed, "bound"), range(len(many)))
    gap = -law.log_prob(many) - continuous_bound(denoiser, many, noise, draws=16, t_min=float(start)).total
    off = zip(probed.log_prob - exact.log_prob, probed.std_error, strict=True)
    return LikelihoodCertificate(
        error=float(error),
        probes_p=any_of(two_sided(float(d), float(e), PROBES - 1) for d, e in off),
        prior_p=mean_p(cost, 0.0, 1e-9),  # where the prior is exact the cost is rounding
        bound_p=float(norm.sf(float(gap.mean()) / (float(gap.std()) / math.sqrt(len(gap))))),
        false_alarm=false_alarm,
    )
