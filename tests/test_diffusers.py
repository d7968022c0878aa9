"""Ground truth 16: with the same network, grid and noise, our steps are those of the schedulers of `diffusers`.

Conventions that differ, and how they are mapped here:

- Their index j = 0 … N − 1 is our time t = (j + 1)/N on ``DDPMChain``, and their end (ᾱ = 1) our denoising step.
- Their network is told the index; ours is told N t − 1, the same number (``noise_label="discrete"``).
- Their DDPM scheduler adds no noise at index 0. A grid that ends at a later index ends with noise there, of standard
  deviation 1e-10 for "fixed_small" (its variance, 0, is clamped at 1e-20) and √(1 − ᾱ_t), all that is left, for
  "fixed_large": a step that ours does not take, since our last one is the posterior mean. Grids end at index 0 here
  where the variance is "fixed_large".
- Their DDIM scheduler takes the step before j to be j − N // steps: a spacing of its own counts only on even grids.
- Their Heun scheduler works on x/α, with σ/α for σ, in float32 on interpolated training indices.
- They compute ᾱ in float32: 1 − ᾱ has lost up to 6e-4 of itself at index 0 (where it is 1e-4), more than the agreement
  wanted. Their tables are therefore replaced by the same ones in float64, from the betas as they have them.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
from samplers.exponential import half_log_snr
from sde_diffusion.denoisers import Wrapper
from sde_diffusion.sdes import DDPMChain

diffusers = pytest.importorskip("diffusers")
scheduling_ddpm = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")

SHAPE = (3, 2, 5)
SCHEDULES = ["linear", "squaredcos_cap_v2"]
# Weights, grid and noise are the same in float64, so that only rounding is left; 1e-5 is what is asked for.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Net(nn.Module):
    """A small random ε-network that depends on every pixel and, through sin and cos, on the index."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10 + 2, 32), nn.Tanh(), nn.Linear(32, 10)).double()

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        phase = index.to(x.dtype).expand(x.shape[0])[:, None] / 300.0
        seen = torch.cat([x.flatten(1), phase.sin(), phase.cos()], dim=1)
        out: Tensor = self.layers(seen)
        return out.reshape(x.shape)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().requires_grad_(False)


@pytest.fixture
def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class SharedNoise:
    """The same standard normal noise for both, as a function of the number of the step."""

    def __init__(self, num_steps: int) -> None:
        generator = torch.Generator().manual_seed(2)
        self.z = torch.randn(num_steps, *SHAPE, generator=generator, dtype=torch.float64)
        self.ours = self.theirs = 0

    def __call__(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        self.ours += 1
        return self.z[self.ours - 1].clone()

    def randn_tensor(self, *args: Any, **kwargs: Any) -> Tensor:
        """In place of ``diffusers``' source of noise."""
        self.theirs += 1
        return self.z[self.theirs - 1]


def pair(scheduler_class: Any, schedule: str, net: Net, **options: Any) -> tuple[Any, sd.Denoiser]:
    """A scheduler and our denoiser on the same betas."""
    scheduler = scheduler_class(num_train_timesteps=1000, beta_schedule=schedule, clip_sample=False, **options)
    betas = scheduler.betas.double()
    scheduler.alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
    return scheduler, sd.Denoiser(net, DDPMChain(betas), noise_label="discrete")


def times_of(indices: Tensor) -> Tensor:
    return (indices.double() + 1.0) / 1000.0


def their_run(scheduler: Any, net: Callable[[Tensor, Tensor], Tensor], x: Tensor, **options: Any) -> Tensor:
    for index in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, index), index), index, x, **options).prev_sample
    return x


GRIDS: dict[str, dict[str, Any]] = {
    "the whole chain": {"num_inference_steps": 1000},
    "20 steps, leading": {"num_inference_steps": 20, "timestep_spacing": "leading"},
    "20 steps, trailing": {"num_inference_steps": 20, "timestep_spacing": "trailing"},
    "7 steps, linspace": {"num_inference_steps": 7, "timestep_spacing": "linspace"},
    "uneven": {"timesteps": [999, 998, 500, 31, 0]},
    "1 step": {"num_inference_steps": 1, "timestep_spacing": "trailing"},
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("theirs", "ours"), [("fixed_small", "posterior"), ("fixed_large", "beta")])
def test_ancestral_is_their_ddpm(
    theirs: str, ours: str, grid: str, schedule: str, net: Net, start: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dict(GRIDS[grid])
    spacing = {"timestep_spacing": settings.pop("timestep_spacing")} if "timestep_spacing" in settings else {}
    scheduler, denoiser = pair(diffusers.DDPMScheduler, schedule, net, variance_type=theirs, **spacing)
    scheduler.set_timesteps(**settings)
    indices = scheduler.timesteps
    if theirs == "fixed_large" and indices[-1] > 0:
        pytest.skip("their last step adds noise of the variance that is left, ours is the posterior mean")
    noise = SharedNoise(len(indices))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", noise.randn_tensor)
    expected = their_run(scheduler, net, start)
    result = samplers.build("ancestral", variance=ours).sample(denoiser, start, noise, times=times_of(indices))
    torch.testing.assert_close(result.x, expected, **CLOSE)
    assert result.nfe == len(indices)
    assert noise.ours == len(indices) - 1


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("num_steps", "spacing"), [(1000, "leading"), (20, "leading"), (20, "trailing"), (1, "trailing")]
)
def test_ddim_is_their_ddim(
    num_steps: int, spacing: str, eta: float, schedule: str, net: Net, start: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``set_alpha_to_one`` their last step goes to ᾱ = 1, where σ = 0: the posterior mean, without noise."""
    scheduler, denoiser = pair(diffusers.DDIMScheduler, schedule, net, set_alpha_to_one=True, timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    noise = SharedNoise(num_steps)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", noise.randn_tensor)
    expected = their_run(scheduler, net, start, eta=eta)
    times = times_of(scheduler.timesteps)
    result = samplers.build("ddim", eta=eta).sample(denoiser, start, noise, times=times)
    torch.testing.assert_close(result.x, expected, **CLOSE)
    assert noise.ours == (num_steps - 1 if eta else 0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("options", [{}, {"use_karras_sigmas": True}, {"timestep_spacing": "trailing"}], ids=str)
@pytest.mark.parametrize("num_steps", [2, 5, 18])
def test_heun_is_their_heun(num_steps: int, options: dict[str, Any], schedule: str, net: Net, start: Tensor) -> None:
    """Their noise levels σ/α, mapped to our times; their last step, to σ = 0, is Euler's and our denoising step.

    Between two training indices they interpolate σ/α (linearly) or the index (in log σ/α), and tell the network the
    index; ours interpolates the log SNR of the chain. So that both networks hear the same number, ours is told theirs.
    """
    scheduler, denoiser = pair(diffusers.HeunDiscreteScheduler, schedule, net, **options)
    scheduler.set_timesteps(num_steps)
    ratios = scheduler.sigmas.double()  # σ/α: the first, each inner one twice, 0
    scheduler.sigmas = ratios
    levels = torch.cat([ratios[:1], ratios[1:-1:2]])
    indices = torch.cat([scheduler.timesteps[:1], scheduler.timesteps[1::2]]).double()
    assert len(levels) == len(indices) == num_steps
    times = denoiser.sde.time_of_log_snr(-2.0 * levels.log()).clamp_max(1.0)  # theirs are rounded to float32
    torch.testing.assert_close(1000.0 * times - 1.0, indices, rtol=0.0, atol=0.2)  # the two ways to interpolate

    table = dict(zip((1000.0 * times - 1.0).tolist(), indices.tolist(), strict=True))

    def told_their_index(x: Tensor, label: Tensor) -> Tensor:
        near = min(table, key=lambda known: abs(known - float(label[0])))
        return net(x, torch.tensor(table[near], dtype=torch.float64))

    ours = sd.Denoiser(told_their_index, denoiser.sde, noise_label="discrete")
    alpha = denoiser.sde.alpha(times[0])
    expected = their_run(scheduler, net, start / alpha)
    result = samplers.build("heun").sample(ours, start, SharedNoise(0), times=times)
    torch.testing.assert_close(result.x, expected, **CLOSE)
    assert result.nfe == len(scheduler.timesteps) == 2 * num_steps - 1


def test_their_float32_tables_are_near() -> None:
    """As they are, their tables of ᾱ agree with ours to float32: 1000 products of rounding 6e-8 each."""
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    times = times_of(torch.arange(1000))
    ours = DDPMChain.linear().alpha(times) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), ours, rtol=1000 * 6e-8, atol=0.0)


def fast_pair(scheduler_class: Any, net: Net, num_steps: int, **options: Any) -> tuple[Any, sd.Denoiser, Tensor]:
    """A scheduler that is set to ``num_steps`` steps, with σ/α in float64, our denoiser, and the same times."""
    usual = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
    known = inspect.signature(scheduler_class.__init__).parameters
    options = {name: value for name, value in usual.items() if name in known} | options
    scheduler = scheduler_class(num_train_timesteps=1000, beta_schedule="linear", **options)
    denoiser = sd.Denoiser(net, DDPMChain(scheduler.betas.double()), noise_label="discrete")
    scheduler.set_timesteps(num_steps)
    times = times_of(scheduler.timesteps)
    ratios = torch.tensor([level.ratio for level in denoiser.sde.levels(times)], dtype=torch.float64)
    scheduler.sigmas = torch.cat([ratios, ratios.new_zeros(1)])
    return scheduler, denoiser, times


def their_steps(scheduler: Any, net: Net, x: Tensor, count: int) -> Tensor:
    """The state after ``count`` steps of theirs."""
    for index in scheduler.timesteps[:count]:
        x = scheduler.step(net(x, index), index, x).prev_sample
    return x


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 20])
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize(
    ("form", "order", "rule"),
    [(form, order, rule) for form in ("x0", "eps") for order, rule in ((1, "midpoint"), (2, "midpoint"), (2, "exact"))],
)
def test_dpm_solver_is_their_multistep(
    form: str, order: int, rule: str, stochastic: bool, num_steps: int, net: Net, start: Tensor, monkeypatch: Any
) -> None:
    """ "exact" is their "heun". In the ε-form their step to σ = 0 is not the posterior mean: it is left out."""
    algorithm = ("sde-" if stochastic else "") + ("dpmsolver++" if form == "x0" else "dpmsolver")
    how = {"algorithm_type": algorithm, "solver_order": order, "solver_type": {"exact": "heun"}.get(rule, rule)}
    if form == "eps":
        how |= {"lower_order_final": False, "final_sigmas_type": "sigma_min"}
    scheduler, denoiser, times = fast_pair(diffusers.DPMSolverMultistepScheduler, net, num_steps, **how)
    noise = SharedNoise(num_steps)
    monkeypatch.setattr("diffusers.schedulers.scheduling_dpmsolver_multistep.randn_tensor", noise.randn_tensor)
    whole = form == "x0"
    options = {"solver_order": order, "form": form, "rule": rule, "tau": float(stochastic), "denoise": whole}
    sampler = samplers.build("dpm_solver", lower_order_final=whole, **options)
    expected = their_steps(scheduler, net, start, num_steps if whole else num_steps - 1)
    result = sampler.sample(denoiser, start, noise, times=times)
    torch.testing.assert_close(result.x, expected, rtol=1e-4, atol=1e-5)  # theirs steps in float32
    assert result.nfe == num_steps - (not whole)


class Recording(Wrapper):
    """Keeps what was predicted of x₀."""

    def __init__(self, denoiser: sd.Denoiser) -> None:
        super().__init__(denoiser)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, t: Any, **conditions: Any) -> sd.Prediction:
        found = self.denoiser(x, t, **conditions)
        self.seen.append(found.x0)
        return found


@pytest.mark.parametrize("stochastic", [False, True])
def test_where_their_third_order_leaves_the_polynomial(
    stochastic: bool, net: Net, start: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs gives the curvature half its weight, and on the SDE one less than that.

    Through the predictions at u = 0, −r₀ and −r₀ − r₁ goes m₀ + D₁ u + D u², D = (D₁₀ − D₁₁)/(r₀ + r₁): so far theirs.
    Then M = ∫ ζ e^{−ζ(1−u)} u² du = 1 − 2(1 − (1 − e^{−ζ})/ζ)/ζ multiplies D. Theirs has M/2 (that for m″ = 2D, which
    singlestep has), and on the SDE, whose ½ has the other sign, M/2 − 1. The order that is left is 2, and 1.
    """
    how = {"algorithm_type": "sde-dpmsolver++" if stochastic else "dpmsolver++", "lower_order_final": False}
    scheduler, denoiser, times = fast_pair(diffusers.DPMSolverMultistepScheduler, net, 4, solver_order=3, **how)
    noise = SharedNoise(3)
    monkeypatch.setattr("diffusers.schedulers.scheduling_dpmsolver_multistep.randn_tensor", noise.randn_tensor)
    expected = their_steps(scheduler, net, start, 3)
    recording = Recording(denoiser)
    options = {"solver_order": 3, "tau": float(stochastic), "denoise": False, "lower_order_final": False}
    found = samplers.build("dpm_solver", **options).sample(recording, start, noise, times=times).x
    a, b, c, d = (half_log_snr(level) for level in denoiser.sde.levels(times))
    m2, m1, m0 = recording.seen
    second = ((m0 - m1) / (c - b) - (m1 - m2) / (b - a)) / (c - a) * (d - c) ** 2
    zeta = (1.0 + stochastic) * (d - c)
    whole = 1.0 - 2.0 * (1.0 + math.expm1(-zeta) / zeta) / zeta
    theirs = whole / 2.0 - stochastic
    assert float((found - expected).abs().max()) > 0.01  # it can be seen
    alpha = float(denoiser.sde.alpha(times[3]))
    torch.testing.assert_close(found - alpha * (whole - theirs) * second, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_steps", [4, 7, 9, 20])
@pytest.mark.parametrize(("order", "rule"), [(1, "midpoint"), (2, "midpoint"), (2, "exact"), (3, "exact")])
def test_dpm_solver_is_their_singlestep(order: int, rule: str, num_steps: int, net: Net, start: Tensor) -> None:
    """Where a step of ours and one of theirs end together; 3S in their "heun", the polynomial through all nodes.

    Their 3S "midpoint" takes the slope to the stage at r₂ as if at its middle, which the paper's Algorithm 2 of
    DPM-Solver (line 9) does not.
    """
    how = {"solver_order": order, "solver_type": {"exact": "heun"}.get(rule, rule), "lower_order_final": True}
    scheduler, denoiser, times = fast_pair(diffusers.DPMSolverSinglestepScheduler, net, num_steps, **how)
    count = (num_steps - 1) // order * order
    expected = their_steps(scheduler, net, start, count)
    sampler = samplers.build("dpm_solver", method="singlestep", solver_order=order, rule=rule, denoise=False)
    torch.testing.assert_close(sampler.sample(denoiser, start, zero, times=times[: count + 1]).x, expected, **CLOSE)


def zero(x: Tensor, t: Any, s: Any) -> Tensor:
    return torch.zeros_like(x)


def states(sampler: samplers.Sampler, denoiser: sd.Denoiser, start: Tensor, times: Tensor) -> list[Tensor]:
    """The states of ours along the grid, the start first, and the posterior mean last."""
    seen: list[Tensor] = []
    sampler.sample(denoiser, start, zero, times=times, callback=lambda step, t, x: seen.append(x.clone()))  # type: ignore[call-arg]
    return seen


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
@pytest.mark.parametrize("form", ["x0", "eps"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_is_theirs(order: int, variant: str, form: str, num_steps: int, net: Net, start: Tensor) -> None:
    """Theirs to σ = 0, where h is infinite, is the posterior mean with x₀ and B(h) = eʰ − 1 alone."""
    how = {"solver_order": order, "solver_type": variant, "predict_x0": form == "x0"}
    scheduler, denoiser, times = fast_pair(diffusers.UniPCMultistepScheduler, net, num_steps, **how)
    whole = form == "x0" and variant == "bh2"
    count = num_steps if whole else num_steps - 1
    sampler = samplers.build("unipc", solver_order=order, variant=variant, form=form)
    found = states(sampler, denoiser, start, times)[count]
    torch.testing.assert_close(found, their_steps(scheduler, net, start, count), **CLOSE)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 20])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_theirs(order: int, num_steps: int, net: Net, start: Tensor) -> None:
    """Theirs is the polynomial in log(σ/α); its last step to σ = 0 is left out, as log σ is infinite there."""
    how = {"solver_order": order, "lower_order_final": False}
    scheduler, denoiser, times = fast_pair(diffusers.DEISMultistepScheduler, net, num_steps, **how)
    expected = their_steps(scheduler, net, start, num_steps - 1)
    sampler = samplers.build("deis", solver_order=order, polynomial="log_rho", denoise=False, lower_order_final=False)
    torch.testing.assert_close(sampler.sample(denoiser, start, zero, times=times).x, expected, **CLOSE)


@pytest.mark.parametrize("num_steps", [2, 3, 4, 10])
def test_ipndm_is_theirs(num_steps: int, net: Net, start: Tensor) -> None:
    """Theirs takes a v-network and any α and σ; its last step, to σ = 0 by a mean of predictions, is left out."""
    sde = sd.DDPMChain.linear()
    denoiser = sd.Denoiser(net, sde, prediction="v", noise_label="discrete")
    times = torch.linspace(1.0, 0.1, num_steps, dtype=torch.float64).mul(1000.0).round() / 1000.0
    levels = sde.levels(times)
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(num_steps)
    scheduler.alphas = torch.tensor([level.alpha for level in levels] + [1.0], dtype=torch.float64)
    scheduler.betas = torch.tensor([level.sigma for level in levels] + [0.0], dtype=torch.float64)
    scheduler.timesteps = times * 1000.0 - 1.0
    expected = their_steps(scheduler, net, start, num_steps - 1)
    result = samplers.build("ipndm", denoise=False).sample(denoiser, start, zero, times=times)
    torch.testing.assert_close(result.x, expected, **CLOSE)
