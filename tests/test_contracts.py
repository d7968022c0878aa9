"""What samplers and denoisers of other people may rely on."""

from __future__ import annotations

import math
import threading
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
from sde_diffusion.denoisers import counted
from sde_diffusion.evaluation.verification import certify, gaussian_error, three_modes
from sde_diffusion.levels import transition
from sde_diffusion.objectives.weightings import EDM
from sde_diffusion.reverse import posterior_coefficients, reverse_variance
from sde_diffusion.sdes import SDE
from sde_diffusion.types import NoiseFn
from tests.conftest import time
from tests.dpmpp_2m import DPMSolverPP2M

# Samplers


def test_a_multistep_sampler_from_outside(sde: SDE) -> None:
    """DPM-Solver++ 2M, whose state is typed, has its order, drops no mode and is as the predictor of a pair."""
    options = ["num_steps", "grid"]
    if sde.smooth:
        assert not certify(DPMSolverPP2M, options, sde).failures
    law = three_modes().denoiser(sde)
    alone = DPMSolverPP2M(num_steps=9, grid="uniform")
    pair = samplers.build("pc", num_steps=9, predictor=alone, corrector="none")
    assert torch.equal(alone.draw(law, (4, 2)).x, pair.draw(law, (4, 2)).x)
    assert (pair.order, pair.stochastic, pair.nfe_per_step) == (2, False, 1)


def test_parts_of_a_pair_have_their_own_options() -> None:
    law = three_modes().denoiser(sd.VPSDE())
    draw = lambda sampler: sampler.draw(law, (4, 2), dtype=torch.float64).x  # noqa: E731
    pc: Any = samplers.build("pc", num_steps=9, predictor={"name": "ddim", "eta": 1.0})
    assert pc.predictor.eta == 1.0
    assert pc.corrector.snr == 0.16
    ancestral = samplers.build("pc", num_steps=9, predictor="ancestral")
    torch.testing.assert_close(draw(pc), draw(ancestral))
    flat = samplers.build("pc", num_steps=9, predictor="ddim", snr=0.3, step_rule="batch_norms")
    nested = samplers.build("pc", num_steps=9, predictor=samplers.build("ddim"), corrector=flat.corrector)  # type: ignore[attr-defined]
    assert torch.equal(draw(flat), draw(nested))
    for sampler in (pc, ancestral, flat, nested, samplers.build("pc", predictor="identity", corrector="none")):
        assert samplers.build("pc", **sampler.options()) == sampler
    assert flat.options()["corrector"] == "langevin"  # as in the rows of earlier sweeps
    with pytest.raises(sd.InputError, match="did you mean 'eta'"):
        samplers.build("pc", predictor={"name": "ddim", "etha": 0.5})
    with pytest.raises(sd.InputError, match="predictor="):
        samplers.build("pc", predictor={"name": "scipy"})


@pytest.mark.parametrize("name", samplers.names())
def test_callbacks_are_told_times_of_each_sample(name: str) -> None:
    seen: list[Tensor] = []
    samplers.build(name).draw(three_modes().denoiser(sd.VPSDE()), (3, 2), callback=lambda i, t, x: seen.append(t))
    assert {(t.shape, t.dtype) for t in seen} == {(torch.Size([3]), torch.float64)}


def test_noise_that_a_sampler_keeps_stays() -> None:
    kept: list[tuple[Tensor, Tensor]] = []

    class Keeping(samplers.Ancestral):
        def step(self, denoiser: Any, x: Tensor, t: Any, s: Any, state: None, noise: NoiseFn) -> tuple[Tensor, None]:
            z = noise(x, t, s)
            kept.append((z, z.clone()))
            return super().step(denoiser, x, t, s, state, lambda *_: z)

    Keeping(num_steps=40).draw(three_modes().denoiser(sd.VPSDE()), (3, 2))
    assert len(kept) == 39
    assert all(torch.equal(z, copy) for z, copy in kept)
    assert len({z.data_ptr() for z, _ in kept}) == 39


def test_counts_of_two_threads_are_apart() -> None:
    law, found = three_modes().denoiser(sd.VPSDE()), {}
    barrier = threading.Barrier(2)

    def draw(steps: int) -> None:
        wait = lambda i, t, x: barrier.wait() if i == 1 else None  # noqa: E731
        found[steps] = samplers.build("ddim", num_steps=steps).draw(law, (2, 2), callback=wait).nfe

    threads = [threading.Thread(target=draw, args=(n,)) for n in (7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {7: 7, 11: 11}
    with counted() as outside:
        samplers.build("ddim", num_steps=3).draw(law, (2, 2))
        law(torch.zeros(2, 2), 0.5)
    assert outside.calls == 1  # a draw's evaluations are its own


# Denoisers


def test_a_network_as_it_was_just_built_starts_near_one() -> None:
    """The default label has unit size: the loss of a plain MLP is that of a prediction near 0, E ε² = 1."""

    class MLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            out: Tensor = self.layers(torch.cat([x, label[:, None]], dim=1))
            return out

    x0 = three_modes().sample(2000, torch.Generator().manual_seed(0)).float()
    for seed, sde in enumerate((sd.VPSDE(), sd.SubVPSDE(), sd.CosineVPSDE(), sd.DDPMChain.linear())):
        torch.manual_seed(seed)
        loss = sd.DenoisingScoreMatching("uniform", "simple")
        value = loss(sd.Denoiser(MLP(), sde), x0, sd.NoiseStream(0, range(2000)))
        assert 0.8 < float(value.mean()) < 1.3


def test_edm_is_karras_preconditioning(sde: SDE) -> None:
    """D(x/α; ρ) = c_skip x/α + c_out F(c_in x/α; ¼ log ρ), Eq. 7 and Table 1, and its loss is that of F."""
    seen: dict[str, Tensor] = {}

    def net(x: Tensor, label: Tensor) -> Tensor:
        seen.update(x=x, label=label)
        return torch.sin(x)

    denoiser, x = sd.Denoiser(net, sde, prediction="edm", sigma_data=0.7), torch.randn(5, 3, dtype=torch.float64)
    for t in (time(0.4), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)):
        alpha, sigma = (a.expand(5)[:, None] for a in (sde.alpha(t), sde.sigma(t)))
        rho, s2 = sigma / alpha, 0.7**2
        p = denoiser(x, t)
        torch.testing.assert_close(seen["x"], x / alpha / (s2 + rho**2).sqrt())
        torch.testing.assert_close(seen["label"], 0.25 * rho[:, 0].log())
        f = torch.sin(seen["x"])
        expected = s2 / (rho**2 + s2) * x / alpha + rho * 0.7 / (rho**2 + s2).sqrt() * f
        torch.testing.assert_close(p.x0, expected)
        torch.testing.assert_close(alpha * p.x0 + sigma * p.eps, x)
    x0, eps = torch.randn(2, 5, 3, dtype=torch.float64)
    loss = sd.DenoisingScoreMatching("uniform", EDM(sigma_data=0.7)).at(denoiser, x0, t, eps)
    x = alpha * x0 + sigma * eps
    target = (x0 - s2 / (rho**2 + s2) * x / alpha) / (rho * 0.7 / (rho**2 + s2).sqrt())
    f = torch.sin(x / alpha / (s2 + rho**2).sqrt())
    torch.testing.assert_close(loss, (f - target).square().mean(dim=1))
    assert sd.Denoiser(net, sde, prediction="edm").sigma_data == 0.5


def test_edm_trains() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))
    denoiser = sd.Denoiser(lambda x, label: net(torch.cat([x, label[:, None]], dim=1)), sd.VESDE(), "edm")
    loss = sd.DenoisingScoreMatching("log_normal", "edm")
    optimizer, law = torch.optim.Adam(net.parameters(), 5e-3), sd.Gaussian([0.4], [[0.09]])
    values, exact = [], []
    for step in range(300):
        x0 = law.sample(256, torch.Generator().manual_seed(step)).float()
        value = loss(denoiser, x0, sd.NoiseStream(step, range(256))).mean()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        values.append(float(value.detach()))
        exact.append(float(loss(law.denoiser(denoiser.sde), x0, sd.NoiseStream(step, range(256))).mean()))
    assert sum(values[:50]) > 1.1 * sum(exact[:50])
    assert sum(values[-50:]) < 1.03 * sum(exact[-50:])
    x = samplers.build("heun", num_steps=18, grid="karras").draw(denoiser, (2000, 1)).x
    assert abs(float(x.mean()) - 0.4) < 0.1
    assert abs(float(x.std()) - 0.3) < 0.1


def test_a_network_with_twice_the_channels_tells_a_variance() -> None:
    sde = sd.DDPMChain.linear()
    fraction = 0.3
    net = lambda x, label: torch.cat([0.2 * x, torch.full_like(x, 2.0 * fraction - 1.0)], dim=1)  # noqa: E731
    wide = sd.Denoiser(net, sde)
    narrow, x = sd.Denoiser(lambda x, label: 0.2 * x, sde), torch.randn(4, 3, 2, 2)
    p, level, s = wide(x, 0.5), sde.at(0.5), sde.at(0.4)
    assert torch.equal(p.eps, narrow(x, 0.5).eps)
    torch.testing.assert_close(p.variance_fraction, torch.full_like(x, fraction))
    _, beta = transition(level, s)
    exact = posterior_coefficients(level, s)[2]
    log_variance = fraction * math.log(beta) + (1.0 - fraction) * math.log(exact)
    found = reverse_variance(p, level, s, "predicted")
    torch.testing.assert_close(found, torch.full_like(x, math.exp(log_variance)))
    drawn = [
        samplers.build("ancestral", num_steps=7, variance=v).draw(d, (4, 3, 2, 2)).x
        for d, v in ((wide, "predicted"), (narrow, fraction))
    ]
    torch.testing.assert_close(*drawn)
    assert samplers.build("heun", num_steps=3).draw(wide, (4, 3, 2, 2)).x.shape == (4, 3, 2, 2)
    with pytest.raises(sd.InputError, match=r"net=\(4, 9, 2, 2\): expected an output of shape \(4, 3, 2, 2\)"):
        sd.Denoiser(lambda x, label: torch.cat([x, x, x], dim=1), sde)(x, 0.5)
    with pytest.raises(sd.InputError, match="variance='predicted'"):
        samplers.build("ancestral", variance="predicted").draw(narrow, (4, 3, 2, 2))


LAWS: dict[str, sd.Law] = {
    "mixture": three_modes(),
    "gaussian": sd.Gaussian([0.3, -0.2], [[0.5, 0.2], [0.2, 0.3]]),
    "empirical": sd.Empirical(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)), bandwidth=0.3),
    "points": sd.Empirical(torch.randn(6, 2, generator=torch.Generator().manual_seed(0))),
}


@pytest.mark.parametrize("t_value", [0.05, 0.4, 0.9])
@pytest.mark.parametrize("name", LAWS)
def test_variance_of_laws_is_tweedies_second_order(sde: SDE, name: str, t_value: float) -> None:
    """Var[x₀ | x] = (σ²/α²)(1 + σ² ∂score/∂x), by automatic differentiation of the log density."""
    law, t = LAWS[name], time(t_value)
    level = sde.at(t)
    x = float(level.alpha) * law.sample(5, torch.Generator().manual_seed(1)) + 0.2 * float(level.sigma)
    rows = [torch.autograd.functional.hessian(lambda y: law.log_prob(y[None], sde, t)[0], row).diagonal() for row in x]
    exact = (level.sigma / level.alpha) ** 2 * (1.0 + level.sigma**2 * torch.stack(rows))
    scale = float((level.sigma / level.alpha) ** 2)
    for when in (t, t.expand(5)):
        found = law.denoiser(sde)(x, when).variance
        torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-8 * scale + 1e-10)


def test_variance_makes_ancestral_sampling_of_a_gaussian_exact(sde: SDE) -> None:
    """Known mean and variance of x_s given x_t: exact in law at any number of steps."""
    for n in (1, 3, 8):
        sampler = samplers.build("ancestral", num_steps=n, t_min=0.1, denoise=False, variance="predicted")
        run = partial(lambda sampler, denoiser, x, noise: sampler.sample(denoiser, x, noise).x, sampler)
        assert gaussian_error(run, sde, 0.1).total < 1e-9


def test_a_law_moves_with_its_denoiser_and_stays_where_it_is() -> None:
    law = three_modes()
    denoiser = law.denoiser(sd.VPSDE()).to("meta")
    assert denoiser.device == torch.device("meta")
    assert law.means.device.type == "cpu"
    assert denoiser(torch.empty(3, 2, device="meta"), 0.5).x0.device.type == "meta"
