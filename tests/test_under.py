"""Ground truth 25: one checkpoint under the clock of another SDE."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
from sde_diffusion.denoisers import PREDICTIONS, counted
from sde_diffusion.evaluation.verification import three_modes
from sde_diffusion.guidance import ClassifierFree, StaticThreshold
from sde_diffusion.predictions import VIEWS
from sde_diffusion.sdes import SDE, SDES
from tests.conftest import time

CLOCKS = (sd.VPSDE, sd.VESDE, sd.FlowSDE)


class Net(nn.Module):
    """Smooth in the state and the label, and of no law."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()

    def forward(self, x: Tensor, label: Tensor, shift: Tensor | None = None) -> Tensor:
        out: Tensor = self.layers(torch.cat([x, label[:, None]], dim=1))
        return out if shift is None else out + shift[:, None]


class Told(Net):
    """Told more than the noise level."""

    conditions = ("shift",)


def between(sde: SDE, log_snrs: tuple[float, float]) -> tuple[float, float]:
    """The times of two log SNRs."""
    first, last = sde.time_of_log_snr(torch.tensor(log_snrs, dtype=torch.float64)).tolist()
    return first, last


def solved(denoiser: sd.AbstractDenoiser, w: Tensor, log_snrs: tuple[float, float], **tight: Any) -> Tensor:
    """x/√(α² + σ²) at the second log SNR, of the probability flow from ``w`` at the first."""
    from sde_diffusion.ode import solve_ode
    from sde_diffusion.reverse import AngularFlow

    flow, times = AngularFlow(denoiser), torch.tensor(between(denoiser.sde, log_snrs), dtype=torch.float64)
    angle = flow.angle(times)
    return solve_ode(flow, w, angle[0], angle[1], **tight).y


@pytest.mark.parametrize(("own", "prediction"), list(zip(SDES.names(), PREDICTIONS, strict=True)))
def test_the_same_picture_under_every_clock(own: str, prediction: str) -> None:
    """From the same x/√(α² + σ²) at λ = −7 to λ = 6, under all SDEs: a tight solve, and the same steps of Heun's."""
    net = sd.Denoiser(Net(), SDES.build(own), prediction)
    w = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    heun: Any = samplers.build("heun", denoise=False)
    found: dict[str, Tensor] = {}
    for sde in (net.sde, *map(SDES.build, SDES.names())):
        denoiser = net.under(sde)
        assert denoiser.sde == sde
        times = sde.time_of_log_snr(torch.linspace(-7.0, 6.0, 20, dtype=torch.float64))
        first, last = (float(sde.at(float(t)).radius) for t in times[[0, -1]])
        stepped = heun.sample(denoiser, w * first, lambda x, t, s: x, times=times).x / last
        torch.testing.assert_close(stepped, found.setdefault("heun", stepped), rtol=0.0, atol=1e-7)  # but for rounding
        if type(sde) in CLOCKS:
            tight = solved(denoiser, w, (-7.0, 6.0), rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(tight, found.setdefault("tight", tight), rtol=0.0, atol=1e-5)


def test_an_exact_law_is_itself_under_every_clock(sde: SDE) -> None:
    """All views, the posterior's variance, and log p to the closed form."""
    law = three_modes()
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for other in (sd.VPSDE(), sd.FlowSDE(), sd.VESDE()):
        denoiser, exact = law.denoiser(other).under(sde), law.denoiser(sde)
        for t in (0.1003, torch.tensor([0.05, 0.2, 0.4, 0.6, 0.7, 0.8], dtype=torch.float64)):
            found, expected = denoiser(x, t), exact(x, t)
            for name in (*VIEWS, "variance"):
                torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-8)
    data = law.sample(5, torch.Generator().manual_seed(2))
    options: dict[str, Any] = {"divergence": "exact", "rtol": 1e-7, "atol": 1e-7, "t_min": 0.02, "check": 0}
    r = sd.log_likelihood(law.denoiser(sd.CosineVPSDE()).under(sde), data, **options)
    end = time(sde.T)
    cost = law.log_prob(r.latent, sde, end) - sde.prior_logp(r.latent)
    # The cosine's last log SNR is −9.7: beyond it x₀ is taken of the state there, off by α times the modes' distance.
    torch.testing.assert_close(r.log_prob + cost, law.log_prob(data, sde, time(0.02)), rtol=0.0, atol=2e-4)


def test_under_its_own_clock_a_denoiser_is_itself() -> None:
    denoiser = sd.Denoiser(Net(), sd.VPSDE())
    assert denoiser.under(sd.VPSDE()) is denoiser
    there = denoiser.under(sd.FlowSDE())
    assert there.under(sd.VPSDE()) is denoiser
    assert there.under(sd.FlowSDE()) is there
    twice, once = there.under(sd.VESDE()), denoiser.under(sd.VESDE())
    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(twice(x, 0.5).x0, once(x, 0.5).x0)
    with pytest.raises(sd.InputError, match="sde='flow': expected an SDE"):
        denoiser.under("flow")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_draws_under_another_clock(sde: SDE, name: str) -> None:
    """Also where the other clock has more noise than the network knows: from λ = −7.8 of VE to −∞ of flow."""
    for own in (sd.VESDE(), sd.DDPMChain.linear(50), sd.FlowSDE()):
        denoiser = sd.Denoiser(Net(), own, "eps", noise_label="discrete" if own.smooth is False else None)
        for n in (1, 5):
            sampler = samplers.build(name, **({"num_steps": n} if "num_steps" in samplers.config(name) else {}))
            assert torch.isfinite(sampler.draw(denoiser.under(sde), (2, 3), dtype=torch.float64).x).all()


def test_more_noise_than_a_network_knows_is_the_most_that_it_knows() -> None:
    """N(0.4, 0.25): x₀ at pure noise is the mean, up to α = 6.6e-3 at the VP's T, with which the state tells of it."""
    law = sd.Gaussian([0.4], [[0.25]])
    p = law.denoiser(sd.VPSDE()).under(sd.FlowSDE())(torch.tensor([[2.0]], dtype=torch.float64), 1.0)
    alpha = float(sd.VPSDE().alpha(time(1.0)))
    assert float(p.x0) == pytest.approx(0.4 + alpha * 0.25 * (2.0 - alpha * 0.4), rel=1e-3)
    assert float(p.eps) == 2.0
    x = samplers.build("ddim", num_steps=400).draw(law.denoiser(sd.VPSDE()).under(sd.FlowSDE()), (4000, 1)).x.double()
    assert float(x.mean()) == pytest.approx(0.4, abs=5.0 * 0.5 / math.sqrt(4000))
    assert float(x.std()) == pytest.approx(0.5, rel=5.0 / math.sqrt(8000) + 0.02)  # first-order steps


def test_a_network_of_discrete_times_is_asked_at_them(sde: SDE) -> None:
    seen: list[float] = []

    def net(x: Tensor, label: Tensor) -> Tensor:
        seen.extend(label.double().tolist())
        return 0.1 * x

    chain = sd.DDPMChain.linear(100)
    denoiser = sd.Denoiser(net, chain, noise_label=sd.labels.Index(100)).under(sde)
    for name in ("ddim", "heun", "ancestral"):
        samplers.build(name, num_steps=12).draw(denoiser, (1, 2), dtype=torch.float64)
    assert len({round(label) for label in seen}) > 4
    assert all(abs(label - round(label)) < 1e-4 for label in seen)


def test_conditions_counts_and_devices_pass_through() -> None:
    net = Told()
    denoiser = sd.Denoiser(net, sd.VPSDE()).under(sd.FlowSDE())
    assert denoiser.conditions == ("shift",)
    x, shift = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    with counted() as evaluations:
        p = denoiser.given({"shift": shift}, 2)(x, 0.5)
    assert (evaluations.rows, evaluations.calls) == (2, 1)
    assert float((p.eps[1] - p.eps[0]).abs().max()) > 0.5
    with pytest.raises(sd.InputError, match="condition"):
        samplers.build("ddim").draw(denoiser, (2, 3), classes=torch.zeros(2))
    result = samplers.build("ddim", num_steps=7).draw(denoiser, (2, 3), shift=shift)
    assert (result.nfe, result.x.dtype) == (7, torch.float32)
    assert denoiser.to("meta").device == torch.device("meta")
    assert next(net.parameters()).device.type == "meta"


@pytest.mark.parametrize("keep_eps", [False, True])
def test_what_wraps_a_denoiser_may_be_on_either_side(keep_eps: bool) -> None:
    """A bound on x₀ with ε as it was is two views that do not fit together: both are kept."""
    net = sd.Denoiser(Net(), sd.VPSDE(), "v")
    x = 2.0 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = StaticThreshold(net, 0.1, keep_eps).under(sd.FlowSDE())
    outside = StaticThreshold(net.under(sd.FlowSDE()), 0.1, keep_eps)
    for name in ("x0", "eps"):
        torch.testing.assert_close(getattr(inside(x, 0.6), name), getattr(outside(x, 0.6), name))
    guided = ClassifierFree(net, 2.0).under(sd.FlowSDE())
    shift = torch.ones(5, dtype=torch.float64)
    other = ClassifierFree(net.under(sd.FlowSDE()), 2.0)
    torch.testing.assert_close(guided(x, 0.6, shift=shift).x0, other(x, 0.6, shift=shift).x0)


def test_a_gradient_reaches_the_state() -> None:
    """Likelihoods need the Jacobian: through times of each sample, of another SDE."""
    denoiser = sd.Denoiser(Net(), sd.VPSDE()).under(sd.FlowSDE())
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    r = sd.log_likelihood(denoiser, x, divergence="exact", check=3)
    assert torch.isfinite(r.log_prob).all()
    assert not r.budget.prior_is_exact


@pytest.mark.slow
def test_the_shipped_checkpoint_draws_the_same_pictures_under_flow() -> None:
    """From the same x/√(α² + σ²), in float32 as it is drawn from."""
    run = sd.open_run("fashion_mnist")
    net, w = run.float32, torch.randn(2, *run.shape, generator=torch.Generator().manual_seed(0))
    clocks = (net.sde, sd.FlowSDE(), sd.VESDE())
    with torch.no_grad():
        pictures = [solved(net.under(sde), w, (-7.0, 8.0), rtol=1e-5, atol=1e-5) for sde in clocks]
    for other in pictures[1:]:
        torch.testing.assert_close(other, pictures[0], rtol=0.0, atol=1e-5)
