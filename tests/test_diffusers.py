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

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
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
