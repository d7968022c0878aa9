"""Ground truth 2: all views agree; noise labels; what a network gives; counted evaluations; bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
from sde_diffusion.labels import NOISE_LABELS, Index, LogSigma, ReversedIndex, Scaled
from sde_diffusion.predictions import VIEWS, Prediction
from sde_diffusion.sdes import SDE
from tests.conftest import time


@pytest.mark.parametrize("t_value", [0.0103, 0.3003, 0.9003])  # between the corners of a chain
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("kind", VIEWS)
def test_views_round_trip(sde: SDE, kind: str, t_value: float, per_sample: bool) -> None:
    """From x₀ and ε make x and each view; all views must give x₀, ε, v, −ε/σ and α′x₀ + σ′ε back."""
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    eps = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    t = time(t_value).requires_grad_()
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    slopes = [torch.autograd.grad(a + 0.0 * t, t)[0] for a in (alpha, sigma)]
    alpha, sigma = alpha.detach(), sigma.detach()
    views = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "score": -eps / sigma}
    views["velocity"] = slopes[0] * x0 + slopes[1] * eps
    x = alpha * x0 + sigma * eps
    level = sde.at(time(t_value).expand(5) if per_sample else t_value).like(x)
    p = Prediction(x, level, {kind: views[kind]})
    # σ and α down to 1e-2 amplify rounding by their inverse squares
    for name, value in views.items():
        torch.testing.assert_close(getattr(p, name), value, rtol=1e-8, atol=1e-8)


def test_network_sees_label_and_scaled_state(sde: SDE) -> None:
    seen: dict[str, Tensor] = {}

    def net(x: Tensor, label: Tensor, **conditions: Tensor) -> Tensor:
        seen.update(x=x, label=label, **conditions)
        return torch.zeros_like(x)

    x = torch.randn(4, 2)
    for t in (time(0.25), torch.full((4,), 0.25, dtype=torch.float64)):
        sd.Denoiser(net, sde, noise_label="scaled")(x, t, y=torch.ones(4))
        torch.testing.assert_close(seen["label"], torch.full((4,), 999 * 0.25))
        assert seen["y"].sum() == 4
        assert torch.equal(seen["x"], x)
        sd.Denoiser(net, sde, sigma_data=0.5)(x, t)
        scale = ((sde.alpha(time(0.25)) * 0.5) ** 2 + sde.sigma(time(0.25)) ** 2).sqrt()
        torch.testing.assert_close(seen["x"] * scale, x)
        p = sd.Denoiser(net, sde, "x0")(x, t)
        assert p.x0.dtype == p.score.dtype == torch.float32


def test_label_of_a_network_that_asks_for_none(sde: SDE) -> None:
    """A quarter of log(σ/α), as of EDM's networks: it grows with the noise."""
    seen: list[Tensor] = []
    denoiser = sd.Denoiser(lambda x, label: (seen.append(label), x)[1], sde)
    for t in (0.3, torch.tensor([0.2, 0.9], dtype=torch.float64)):
        denoiser(torch.zeros(2, 3, dtype=torch.float64), t)
        at = torch.as_tensor(t, dtype=torch.float64).expand(2)
        torch.testing.assert_close(seen[-1], 0.25 * (sde.sigma(at) / sde.alpha(at)).log())


def test_labels_and_rounding() -> None:
    sde = sd.VESDE()
    assert Scaled()(sde.at(1.0)) == 999.0
    assert LogSigma()(sde.at(1.0)) == pytest.approx(torch.tensor(50.0).log().item())
    discrete = Index(1000)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(discrete(sde.at(t)), torch.arange(1000, dtype=torch.float64))
    assert float(discrete.round_t(time(0.4996))) == 0.5
    assert float(discrete.round_t(time(1e-9))) == 0.001
    assert torch.equal(discrete.round_t(t), t)
    assert torch.equal(Scaled().round_t(t), t)

    assert LogSigma(0.5)(sde.at(1.0)) == pytest.approx(math.log(25.0))
    levels = ReversedIndex(1000)  # σ falls from the first to the last, in equal ratios
    t = torch.arange(1, 1000, dtype=torch.float64) / 999
    torch.testing.assert_close(levels(sde.at(t)), torch.arange(998.0, -1.0, -1.0, dtype=torch.float64))
    sigmas = torch.linspace(math.log(50.0), math.log(0.01), 1000, dtype=torch.float64).exp()
    torch.testing.assert_close(sde.sigma(t), sigmas[levels(sde.at(t)).round().long()])
    torch.testing.assert_close(levels.round_t(t + 4e-4), t)
    assert float(levels.round_t(time(1e-9))) == pytest.approx(1 / 999)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prediction": "epsilon"}, "did you mean 'eps'"),
        ({"prediction": 3}, "prediction=3"),
        ({"noise_label": "discreet"}, "did you mean 'discrete'"),
        ({"sigma_data": 0.0}, "sigma_data=0.0"),
        ({"sde": "vp"}, "sde='vp'"),
    ],
)
def test_bad_input(options: dict[str, object], match: str) -> None:
    arguments = {"sde": sd.VPSDE(), **options}
    with pytest.raises(sd.InputError, match=match):
        sd.Denoiser(lambda x, t: x, **arguments)  # type: ignore[arg-type]
    with pytest.raises(sd.InputError, match="scale=0"):
        NOISE_LABELS.build("scaled", scale=0.0)


class Dropped(nn.Module):
    """ε̂ = x/2 with half of it dropped in training."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.dropout = nn.Parameter(torch.tensor(0.5)), nn.Dropout(0.5)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.scale * x)
        return out


def test_draws_and_likelihoods_are_without_dropout_and_restore_the_mode() -> None:
    net = Dropped().train()
    net.dropout.eval()  # a mode of its own, which is kept
    frozen = sd.Denoiser(net, sd.VPSDE())
    net.dropout.train()
    denoiser = sd.Denoiser(net, sd.VPSDE())
    draws = [samplers.build("ddim", num_steps=5).draw(denoiser, (4, 3), seed=0).x for _ in range(2)]
    assert torch.equal(*draws)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    scores = [sd.log_likelihood(denoiser, x, check=0).log_prob for _ in range(2)]
    assert torch.equal(*scores)
    assert net.training
    assert net.dropout.training

    def stop(step: int, t: Tensor, x: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        samplers.build("ddim", num_steps=5).draw(denoiser, (4, 3), callback=stop)
    assert net.dropout.training
    net.dropout.eval()
    samplers.build("ddim", num_steps=2).draw(frozen, (4, 3))
    assert net.training
    assert not net.dropout.training


def test_a_network_computes_in_its_own_dtype() -> None:
    """float64 states through a float32 network agree with float32 states to its rounding; fewer digits are refused."""
    denoiser = sd.Denoiser(Dropped(), sd.VPSDE())
    draw = samplers.build("ddim", num_steps=20).draw
    wide, narrow = (draw(denoiser, (64, 3), seed=0, dtype=dtype).x for dtype in (torch.float64, torch.float32))
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), narrow, rtol=1e-4, atol=1e-5)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    scores = [sd.log_likelihood(denoiser, v, divergence="exact", check=0, t_min=1e-4).log_prob for v in (x, x.double())]
    torch.testing.assert_close(*scores, rtol=0.0, atol=5e-3)
    half = sd.Denoiser(Dropped().to(torch.bfloat16), sd.VPSDE())
    assert draw(half, (4, 3)).x.dtype == torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(sd.InputError, match=r"dtype=torch\.(b?float16): expected torch\.float32 or torch\.float64"):
            draw(denoiser, (4, 3), dtype=dtype)
        with pytest.raises(sd.InputError, match="float32 or float64"):
            sd.log_likelihood(denoiser, x.to(dtype))
