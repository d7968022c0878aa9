"""Denoisers that wrap one: bounds on x₀, classifier-free guidance; what passes through a wrapper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
from sde_diffusion import config as configuration
from sde_diffusion.denoisers import Given
from sde_diffusion.guidance import THRESHOLDS, ClassifierFree, DynamicThreshold, StaticThreshold
from sde_diffusion.ops import per_example
from sde_diffusion.stored_config import merge, modern, modern_flags


class Conditional(nn.Module):
    """A network that may be told a class, and notes the rows of its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)
        self.embedding = nn.Embedding(3, 3)
        self.rows: list[int] = []

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        self.rows.append(len(x))
        out: Tensor = 0.1 * self.layer(torch.cat([x, label[:, None]], dim=1))
        return out if classes is None else out + 0.1 * self.embedding(classes)


CLASSES = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("name", samplers.names())
def test_static_threshold_keeps_the_prediction_within(name: str) -> None:
    """With a law far outside the bound each sample ends on it; within the bound nothing changes."""
    steps = {"num_steps": 5} if "num_steps" in samplers.config(name) else {}

    def draw(mean: float, bound: float | None) -> Tensor:
        law = sd.Gaussian([mean], [[1e-4]]).denoiser(sd.VPSDE())
        asked = law if bound is None else StaticThreshold(law, bound)
        return samplers.build(name, **steps).draw(asked, (4, 1)).x

    torch.testing.assert_close(draw(3.0, 0.5).abs(), torch.full((4, 1), 0.5), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(draw(0.2, 50.0), draw(0.2, None), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep_eps", [False, True])
def test_views_of_a_bounded_prediction(keep_eps: bool) -> None:
    sde, x = sd.VPSDE(), torch.randn(5, 3, dtype=torch.float64)
    plain = sd.Denoiser(lambda x, label: torch.sin(3.0 * x), sde)
    level = sde.at(0.6)
    before, p = plain(x, level), StaticThreshold(plain, 0.4, keep_eps=keep_eps)(x, level)
    torch.testing.assert_close(p.x0, before.x0.clamp(-0.4, 0.4))
    eps = before.eps if keep_eps else (x - level.alpha * p.x0) / level.sigma
    torch.testing.assert_close(p.eps, eps)
    torch.testing.assert_close(p.v, level.alpha * eps - level.sigma * p.x0)
    torch.testing.assert_close(p.score, -eps / level.sigma)


def test_dynamic_threshold_is_the_percentile_of_each_sample() -> None:
    x0 = (
        torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0.1, 1, 2, 3, 4, 50])[:, None, None, None].sqrt()
    )
    wrapper = DynamicThreshold(sd.Gaussian([0.0], [[1.0]]).denoiser(sd.VPSDE()), 0.9, max_value=3.0)
    found = wrapper.bounded(x0)
    for own, one in zip(x0, found, strict=True):
        s = min(max(float(torch.quantile(own.abs(), 0.9)), 1.0), 3.0)
        torch.testing.assert_close(one, own.clamp(-s, s) / s)
    assert torch.equal(found[0], x0[0])
    assert per_example(found).abs().amax() <= 1.0


def of_before(**clips: float) -> ConfigDict:
    """The configuration of a run of 0.1.0 whose first sampler was chosen, as it is read today."""
    options: dict[str, Any] = {name: {"clip": clip} for name, clip in clips.items()}
    config = configuration.default_config()
    values = {"sampler": {"name": next(iter(clips)), **options}, "denoiser": {"conditioning": {"name": "scaled"}}}
    merge(config, modern(values), Path("config.json"))
    assert config.denoiser.noise_label.name == "scaled"
    return config


def test_old_clip_is_a_static_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the samplers that had it: all, one, or of two bounds that of the chosen one, which is said."""
    plain = sd.Denoiser(lambda x, label: x, sd.VPSDE())

    def bounds(config: ConfigDict) -> dict[str, float]:
        wrapped = {name: configuration.wrap(config, plain, name) for name in samplers.names()}
        return {name: found.bound for name, found in wrapped.items() if isinstance(found, StaticThreshold)}

    assert bounds(of_before(**dict.fromkeys(samplers.names(), 1.0))) == dict.fromkeys(samplers.names(), 1.0)
    assert bounds(of_before(ddim=0.0, ancestral=1.0)) == {"ancestral": 1.0}
    assert bounds(of_before(ddim=0.0, heun=0.0)) == {}
    assert capsys.readouterr().err == ""
    assert bounds(of_before(heun=0.7, ddim=1.0, pc=0.0)) == {"heun": 0.7}
    assert "one bound is kept, 0.7 of heun" in capsys.readouterr().err


def test_old_flags(tmp_path: Path) -> None:
    flags = ["--a.b=1", "--config.sampler.ddim.clip=0.5", "--config.denoiser.conditioning.name=scaled"]
    bound = "--config.denoiser.thresholding"
    assert modern_flags(flags) == [
        "--a.b=1",
        f"{bound}.name=static",
        f"{bound}.static.bound=0.5",
        f"{bound}.samplers=('ddim',)",
        "--config.denoiser.noise_label.name=scaled",
    ]


@pytest.mark.parametrize("name", samplers.names())
def test_guidance_takes_two_evaluations_in_every_sampler(name: str) -> None:
    """Counted where the network is called: twice those of the denoiser alone, which guidance at scale 1 equals."""
    net = Conditional()
    denoiser = sd.Denoiser(net, sd.VPSDE())
    steps = {"num_steps": 6} if "num_steps" in samplers.config(name) else {}
    sampler = samplers.build(name, **steps)
    found = {}
    for scale in (0.0, 1.0, 2.5):
        net.rows.clear()
        result = sampler.draw(ClassifierFree(denoiser, scale), (4, 3), classes=CLASSES)
        assert result.network_calls == len(net.rows)
        assert result.nfe == sum(net.rows) / 4
        assert int(result.nfe_per_sample.max()) == result.nfe
        found[scale] = result
    alone = sampler.draw(denoiser, (4, 3), classes=CLASSES)
    assert torch.equal(found[1.0].x, alone.x)
    assert torch.equal(found[0.0].x, sampler.draw(denoiser, (4, 3)).x)
    assert found[1.0].nfe == alone.nfe
    if sampler.nfe_per_step is not None:
        assert found[2.5].nfe == 2 * alone.nfe
    assert (found[2.5].x - alone.x).abs().max() > 1e-3


def test_branches_in_one_call() -> None:
    """A wrapper that asks for both branches at once: two evaluations, one call of the network."""

    class Batched(sd.denoisers.Wrapper):
        def forward(self, x: Tensor, t: Any, **conditions: Any) -> sd.Prediction:
            p = self.denoiser(torch.cat([x, x]), t)
            first, second = p.x0.chunk(2)
            return sd.Prediction(x, self.level(t).like(x), {"x0": 0.5 * (first + second)})

    result = samplers.build("heun", num_steps=4).draw(Batched(sd.Denoiser(Conditional(), sd.VPSDE())), (4, 3))
    assert (result.nfe, result.network_calls) == (14, 7)


def test_guidance_formula_and_interval() -> None:
    """x̂₀ and ε̂ are extrapolated; outside of the interval, in σ/α, one evaluation, of the conditional branch."""
    net, sde = Conditional(), sd.VPSDE()
    denoiser, x = sd.Denoiser(net, sde), torch.randn(4, 3)
    guided = ClassifierFree(denoiser, 3.0, interval=(0.5, 2.0))
    t = torch.tensor([0.05, 0.3, 0.35, 0.9], dtype=torch.float64)
    ratio = sde.sigma(t) / sde.alpha(t)
    inside = (ratio >= 0.5) & (ratio <= 2.0)
    assert inside.tolist() == [False, True, True, False]
    conditional, unconditional, both = denoiser(x, t, classes=CLASSES), denoiser(x, t), guided(x, t, classes=CLASSES)
    scale = torch.where(inside, 3.0, 1.0)[:, None]
    for view in ("x0", "eps", "v"):
        a, b = unconditional.view(view), conditional.view(view)
        torch.testing.assert_close(both.view(view), a + scale * (b - a), rtol=1e-4, atol=1e-5)
    for i, own in enumerate(t.tolist()):
        net.rows.clear()
        one = guided(x[i : i + 1], own, classes=CLASSES[i : i + 1])
        assert len(net.rows) == 1 + bool(inside[i])
        torch.testing.assert_close(one.eps, both.eps[i : i + 1], rtol=1e-4, atol=1e-5)


WRAPPERS = [StaticThreshold, DynamicThreshold, ClassifierFree, lambda d: Given(d, {"classes": CLASSES})]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapper_is_a_denoiser(wrap: Any) -> None:
    """Device, parameters, times and dtype are those of what it wraps."""
    with torch.device("meta"):
        net = Conditional()
    inner = sd.Denoiser(net, sd.DDPMChain.linear(), noise_label="discrete")
    outer = wrap(wrap(inner))
    assert outer.device == inner.device == torch.device("meta")
    assert list(outer.parameters()) == list(net.parameters())
    assert outer.sde is inner.sde
    assert float(outer.round_t(torch.tensor(0.4996))) == 0.5
    moved = outer.to_empty(device="cpu")
    assert net.layer.weight.device.type == moved.device.type == "cpu"
    assert wrap(inner)(torch.randn(4, 3), 0.5).x0.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda d: StaticThreshold(d, 0.0), "bound=0"),
        (lambda d: StaticThreshold(d, keep_eps=1), "keep_eps=1"),
        (lambda d: DynamicThreshold(d, 1.5), "percentile=1.5"),
        (lambda d: DynamicThreshold(d, max_value=0.5), "max_value=0.5"),
        (lambda d: THRESHOLDS.build("statik", denoiser=d), "did you mean 'static'"),
        (lambda d: ClassifierFree(d, math.nan), "scale=nan"),
        (lambda d: ClassifierFree(d, interval=(2.0, 1.0)), "interval="),
        (lambda d: ClassifierFree(lambda x, t: x), "denoiser="),
    ],
)
def test_bad_input(make: Any, match: str) -> None:
    with pytest.raises(sd.InputError, match=match):
        make(sd.Gaussian([0.0], [[1.0]]).denoiser(sd.VPSDE()))
