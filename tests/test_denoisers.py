"""Ground truth 2: the four views agree; time conditioning; bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.denoisers import CONDITIONINGS, PREDICTIONS, Discrete, LogSigma, Prediction, Reversed, Scaled
from sde_diffusion.sdes import SDE
from tests.conftest import time


@pytest.mark.parametrize("t_value", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_views_round_trip(sde: SDE, kind: str, t_value: float) -> None:
    """From x₀ and ε make x and each raw output; all views must give x₀, ε, v and −ε/σ back."""
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    eps = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    alpha, sigma = sde.alpha(time(t_value)), sde.sigma(time(t_value))
    views = {"x0": x0, "eps": eps, "v": alpha * eps - sigma * x0, "score": -eps / sigma}
    p = Prediction(views[kind], kind, alpha * x0 + sigma * eps, alpha, sigma)
    # σ and α down to 1e-2 amplify rounding by their inverse squares
    for name, value in views.items():
        torch.testing.assert_close(getattr(p, name), value, rtol=1e-8, atol=1e-8)


def test_network_sees_label_and_scaled_state(sde: SDE) -> None:
    seen: dict[str, Tensor] = {}

    def net(x: Tensor, label: Tensor, **conditioning: Tensor) -> Tensor:
        seen.update(x=x, label=label, **conditioning)
        return torch.zeros_like(x)

    x = torch.randn(4, 2)
    for t in (time(0.25), torch.full((4,), 0.25, dtype=torch.float64)):
        sd.Denoiser(net, sde)(x, t, y=torch.ones(4))
        torch.testing.assert_close(seen["label"], torch.full((4,), 999 * 0.25))
        assert seen["y"].sum() == 4
        assert torch.equal(seen["x"], x)
        sd.Denoiser(net, sde, sigma_data=0.5)(x, t)
        scale = ((sde.alpha(time(0.25)) * 0.5) ** 2 + sde.sigma(time(0.25)) ** 2).sqrt()
        torch.testing.assert_close(seen["x"] * scale, x)
        p = sd.Denoiser(net, sde, "x0")(x, t)
        assert p.x0.dtype == p.score.dtype == torch.float32


def test_labels_and_rounding() -> None:
    sde = sd.VESDE()
    assert float(Scaled().label(time(1.0), sde)) == 999.0
    assert float(LogSigma().label(time(1.0), sde)) == pytest.approx(torch.tensor(50.0).log().item())
    discrete = Discrete(1000)
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(discrete.label(t, sde), torch.arange(1000, dtype=torch.float64))
    assert float(discrete.round_t(time(0.4996))) == 0.5
    assert float(discrete.round_t(time(1e-9))) == 0.001
    assert torch.equal(discrete.round_t(t), t)
    assert torch.equal(Scaled().round_t(t), t)

    assert float(LogSigma(0.5).label(time(1.0), sde)) == pytest.approx(math.log(25.0))
    levels = Reversed(1000)  # σ falls from the first to the last, in equal ratios
    t = torch.arange(1, 1000, dtype=torch.float64) / 999
    torch.testing.assert_close(levels.label(t, sde), torch.arange(998.0, -1.0, -1.0, dtype=torch.float64))
    sigmas = torch.linspace(math.log(50.0), math.log(0.01), 1000, dtype=torch.float64).exp()
    torch.testing.assert_close(sde.sigma(t), sigmas[levels.label(t, sde).round().long()])
    torch.testing.assert_close(levels.round_t(t + 4e-4), t)
    assert float(levels.round_t(time(1e-9))) == pytest.approx(1 / 999)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prediction": "epsilon"}, "did you mean 'eps'"),
        ({"prediction": 3}, "prediction=3"),
        ({"conditioning": "discreet"}, "did you mean 'discrete'"),
        ({"sigma_data": 0.0}, "sigma_data=0.0"),
        ({"sde": "vp"}, "sde='vp'"),
    ],
)
def test_bad_input(options: dict[str, object], match: str) -> None:
    arguments = {"sde": sd.VPSDE(), **options}
    with pytest.raises(sd.InputError, match=match):
        sd.Denoiser(lambda x, t: x, **arguments)  # type: ignore[arg-type]
    with pytest.raises(sd.InputError, match="scale=0"):
        CONDITIONINGS.build("scaled", scale=0.0)


@pytest.mark.parametrize("sigma_data", [None, 0.5])
@pytest.mark.parametrize("conditioning", CONDITIONINGS.names())
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_tabulated_predictions_are_the_plain_ones(
    sde: SDE, kind: str, conditioning: str, sigma_data: float | None
) -> None:
    """What a sampler's loop uses agrees with a denoiser called by hand, to rounding, in every view."""
    denoiser = sd.Denoiser(
        lambda x, label: torch.sin(x) + 1e-3 * label[:, None], sde, kind, conditioning, sigma_data=sigma_data
    )
    x, grid = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9, 0.4, 0.1]).double()
    points = grid.unbind()
    tabulated = denoiser.tabulated(grid, points)
    for t in points:
        a, b = denoiser(x, t), tabulated(x, t)
        for view in PREDICTIONS:
            torch.testing.assert_close(getattr(b, view), getattr(a, view), rtol=1e-5, atol=1e-6)
    assert torch.equal(tabulated(x, time(0.33)).raw, denoiser(x, time(0.33)).raw)
