"""Ground truths 10-12: log-likelihoods against closed forms, the estimator and its errors, bits per dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy.stats import sem
from scipy.stats import t as student
from torch import Tensor

import samplers
import sde_diffusion as sd
from sde_diffusion import likelihood
from sde_diffusion.denoisers import AbstractDenoiser
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.likelihood import choose_tolerance, importance_weighted, mean_and_error
from sde_diffusion.networks import MLP
from sde_diffusion.ops import Number
from sde_diffusion.predictions import Prediction
from sde_diffusion.sdes import SDE, SDES
from tests.conftest import time

T_MIN = 1e-3


class Reshaped(sd.Law):
    """A law over vectors, over pictures instead."""

    def __init__(self, law: sd.Law, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.law, self.shape = law, shape
        if isinstance(law, sd.Gaussian):
            self.prior_kl = law.prior_kl

    def _log_components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.law._log_components(x, alpha, sigma)

    def _mean_of_components(self, r: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.law._mean_of_components(r, x, alpha, sigma)

    def _variance_of_components(self, r: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.law._variance_of_components(r, x, alpha, sigma)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.law.sample(n, generator).reshape(n, *self.shape)


def correlated(size: int, scale: float = 0.5) -> sd.Gaussian:
    generator = torch.Generator().manual_seed(size)
    root = scale * torch.randn(size, size, generator=generator, dtype=torch.float64) / math.sqrt(size)
    mean = 0.3 * torch.randn(size, generator=generator, dtype=torch.float64)
    return sd.Gaussian(mean, root @ root.T + 0.05 * torch.eye(size, dtype=torch.float64))


LAWS: dict[str, sd.Law] = {
    "gaussian 2": correlated(2),
    "gaussian 16": correlated(16),
    "gaussian 1×4×4": Reshaped(correlated(16), (1, 4, 4)),
    "mixture": sd.GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], [[[0.05, 0.02], [0.02, 0.05]]] * 2),
    "empirical": sd.Empirical(torch.randn(9, 1, 2, 2, generator=torch.Generator().manual_seed(0)), bandwidth=0.3),
}


def draw(law: sd.Law, n: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return law.sample(n).double()


@pytest.mark.parametrize("name", LAWS)
def test_log_prob_is_that_of_the_law(sde: SDE, name: str) -> None:
    """Within 1e-4 nats once the prior is replaced by p_T; the budget's prior term is the mean of what that costs."""
    law = LAWS[name]
    x = draw(law, 6)
    r = sd.log_likelihood(law.denoiser(sde), x, divergence="exact", rtol=1e-7, atol=1e-7, t_min=T_MIN, check=6)
    prior_term = law.log_prob(r.latent, sde, time(sde.T)) - sde.prior_logp(r.latent)
    torch.testing.assert_close(r.log_prob + prior_term, law.log_prob(x, sde, time(T_MIN)), rtol=0, atol=1e-4)
    assert torch.equal(r.std_error, torch.zeros(6, dtype=torch.float64))
    assert not r.reasons
    assert r.budget.checked == 6
    assert abs(r.budget.solver[0]) < 1e-5
    # The bound through t_min holds on average over noise, and is tight to order t_min here.
    assert abs(r.budget.truncation[0]) < 0.02 + 5.0 * r.budget.truncation[1]
    assert r.budget.prior_is_exact == ("gaussian" in name)
    many = draw(law, 4000)
    cost = law.log_prob(many_T := _diffused(sde, many), sde, time(sde.T)) - sde.prior_logp(many_T)
    slack = 5.0 * float(cost.std()) / math.sqrt(4000) + 1e-12  # rounding, where the prior is exact
    assert float(cost.mean()) <= r.budget.prior + slack
    if r.budget.prior_is_exact:
        assert float(cost.mean()) == pytest.approx(r.budget.prior, abs=slack)


def _diffused(sde: SDE, x: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    mean, std = sde.marginal_prob(x, time(sde.T))
    return mean + std * torch.randn(x.shape, generator=generator, dtype=x.dtype)


@pytest.mark.parametrize("law_name", ["gaussian 16", "gaussian 1×4×4"])
def test_hutchinson_is_unbiased_over_a_thousand_probes(law_name: str) -> None:
    law = LAWS[law_name]
    x = draw(law, 3)
    denoiser = law.denoiser(sd.VPSDE())
    exact = sd.log_likelihood(denoiser, x, divergence="exact", rtol=1e-6, atol=1e-6, check=0)
    for probe_law in likelihood.PROBE_LAWS:
        r = sd.log_likelihood(denoiser, x, probes=1000, probe_law=probe_law, rtol=1e-6, atol=1e-6, check=0)
        assert ((r.log_prob - exact.log_prob).abs() <= 4.0 * r.std_error).all()
        assert (r.std_error > 0.0).all()


def test_reported_standard_error_covers() -> None:
    """95 % Student intervals from 24 probes contain the exact value in 92 to 98 % of 800 repetitions."""
    law = LAWS["gaussian 16"]
    denoiser = law.denoiser(sd.VPSDE())
    x = draw(law, 1).expand(800, -1)
    options: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4, "check": 0}
    exact = sd.log_likelihood(denoiser, x[:1], divergence="exact", **options).log_prob
    r = sd.log_likelihood(denoiser, x, probes=24, **options)
    inside = ((r.log_prob - exact).abs() <= student.ppf(0.975, 23) * r.std_error).double().mean()
    assert 0.92 <= float(inside) <= 0.98
    # And the budget's error of the mean is that of the mean.
    assert abs(float((r.log_prob - exact).mean())) <= 4.0 * r.budget.probes


def test_rademacher_is_exact_on_a_diagonal_jacobian() -> None:
    law = sd.Gaussian([0.1, -0.3, 0.2], torch.tensor([0.2, 1.0, 3.0]).diag())
    x = draw(law, 4)
    denoiser = law.denoiser(sd.SubVPSDE())
    exact = sd.log_likelihood(denoiser, x, divergence="exact", rtol=1e-8, atol=1e-8, check=0)
    r = sd.log_likelihood(denoiser, x, probes=3, rtol=1e-8, atol=1e-8, check=0)
    torch.testing.assert_close(r.log_prob, exact.log_prob, rtol=0, atol=1e-6)
    assert float(r.std_error.max()) < 1e-12
    gaussian = sd.log_likelihood(denoiser, x, probes=3, probe_law="gaussian", check=0)
    assert float(gaussian.std_error.min()) > 1e-3


def test_exact_divergence_is_the_mean_over_all_sign_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    law = LAWS["empirical"]
    x = draw(law, 3)
    denoiser = law.denoiser(sd.VPSDE())
    exact = sd.log_likelihood(denoiser, x, divergence="exact", rtol=1e-6, atol=1e-6, check=0)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4).reshape(16, 1, 1, 2, 2)
    monkeypatch.setattr(likelihood, "_directions", lambda *a: [signs.expand(-1, 3, -1, -1, -1)])
    mean = sd.log_likelihood(denoiser, x, probes=16, rtol=1e-6, atol=1e-6, check=0)
    torch.testing.assert_close(mean.log_prob, exact.log_prob, rtol=0, atol=1e-5)


def test_chunks_change_memory_not_values(monkeypatch: pytest.MonkeyPatch) -> None:
    law = LAWS["gaussian 16"]
    x = draw(law, 4)
    for options in ({"divergence": "exact"}, {"probes": 7}):
        whole = sd.log_likelihood(law.denoiser(sd.VPSDE()), x, check=0, **options)  # type: ignore[arg-type]
        for rows in (1, 12):  # one direction, three directions at a time
            monkeypatch.setattr(likelihood, "_ROWS", rows)
            chunked = sd.log_likelihood(law.denoiser(sd.VPSDE()), x, check=0, **options)  # type: ignore[arg-type]
            torch.testing.assert_close(chunked.log_prob, whole.log_prob, rtol=0, atol=1e-9)
        monkeypatch.undo()


class Counting(torch.nn.Module):
    """A network that counts its forward passes."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.calls += 1
        return self.net(x, label)  # type: ignore[no-any-return]


def network(size: int = 4) -> Counting:
    torch.manual_seed(1)
    net = MLP(shape=(size,))
    for p in net.parameters():  # last layers start at 0: give it a slope
        torch.nn.init.normal_(p, std=0.1) if p.ndim > 1 else None
    return Counting(net)


def test_one_forward_pass_an_evaluation_whatever_the_probes() -> None:
    net = network()
    denoiser = sd.Denoiser(net, sd.VPSDE(), prediction="v", noise_label="log_snr")
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    for options in ({"probes": 1}, {"probes": 6}, {"divergence": "exact"}):
        net.calls = 0
        r = sd.log_likelihood(denoiser, x, check=0, **options)  # type: ignore[arg-type]
        assert net.calls == int(r.nfe.max())
    assert all(p.grad is None for p in net.parameters())


def test_a_sample_does_not_feel_its_neighbours() -> None:
    denoiser = sd.Denoiser(network(), sd.VPSDE(), prediction="v", noise_label="log_snr")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, generator=generator)
    outliers = 30.0 * torch.randn(63, 4, generator=generator)
    alone = sd.log_likelihood(denoiser, x, probes=2, check=0)
    among = sd.log_likelihood(denoiser, torch.cat([x, outliers]), probes=2, check=0)
    # float32 sums in another order, some 14 nats: 2⁻²⁴ of them for each of the 60 evaluations
    torch.testing.assert_close(among.log_prob[:1], alone.log_prob, rtol=60 * 2.0**-24, atol=0)
    assert among.nfe[0] == alone.nfe[0]
    assert (among.nfe[1:] != among.nfe[0]).sum() > 50  # nearly all outliers take other steps
    second = sd.log_likelihood(denoiser, outliers[:5], probes=2, check=0, first_index=1)  # a batch of its own
    torch.testing.assert_close(second.log_prob, among.log_prob[1:6], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", ["gaussian 1×4×4", "mixture"])
def test_latent_decodes_to_the_sample(sde: SDE, name: str) -> None:
    law = LAWS[name]
    x = draw(law, 4)
    denoiser = law.denoiser(sde)
    r = sd.log_likelihood(denoiser, x, rtol=1e-7, atol=1e-7, t_min=T_MIN, check=0)
    decoder = samplers.build("probability_flow", rtol=1e-7, atol=1e-7, t_min=T_MIN, denoise=False)
    back = decoder.sample(denoiser, r.latent, sd.NoiseStream(0, range(4))).x
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("t_min", [1e-3, 1e-2, 0.05])
@pytest.mark.parametrize("variance", [1e-4, 1e-2, 1.0])
def test_truncation_is_what_p_at_t_min_lacks(t_min: float, variance: float) -> None:
    """N(0.3, V): log p − log p_{t_min} in closed form, for noise that is small and large beside the data.

    In the mean over the samples the budget is within a tenth, or 1e-3, of what is missing: at most a hundredth of the
    variance is left.
    """
    law, sde = sd.Gaussian([0.3, 0.3], variance * torch.eye(2, dtype=torch.float64)), sd.VPSDE()
    x = draw(law, 400)
    r = sd.log_likelihood(law.denoiser(sde), x, divergence="exact", t_min=t_min, check=400, rtol=1e-7, atol=1e-7)
    missing = float((law.log_prob(x) - law.log_prob(x, sde, time(t_min))).mean())
    value, _ = r.budget.truncation
    assert value == pytest.approx(missing, rel=0.1, abs=1e-3)


@pytest.mark.parametrize(("variance", "factor"), [(1e-4, 3.0), (1e-3, 1.5), (1e-2, 1.5)])
def test_truncation_of_a_network_of_discrete_time_is_extrapolated(variance: float, factor: float) -> None:
    """The first time is 1/1000, of variance 1e-4: what it misses is told to a factor, and never as nothing."""
    sde = sd.DDPMChain.linear(1000)
    law = sd.Gaussian([0.3, 0.3], variance * torch.eye(2, dtype=torch.float64))
    exact = law.denoiser(sde)

    def net(x: Tensor, label: Tensor) -> Tensor:
        return exact(x, (label.double() + 1.0) / 1000).eps

    denoiser = sd.Denoiser(net, sde, noise_label="discrete")
    x = draw(law, 1000)
    r = sd.log_likelihood(denoiser, x, divergence="exact", check=1000, rtol=1e-8, atol=1e-8)
    missing = law.log_prob(x) - law.log_prob(x, sde, time(1e-3))
    value, error = r.budget.truncation
    slack = 3.0 * max(error, float(missing.std()) / math.sqrt(1000))
    assert abs(value) >= abs(float(missing.mean())) / factor - slack
    assert abs(value) <= abs(float(missing.mean())) * factor + slack


@pytest.mark.parametrize("power", [0.4, 1.0, 1.9])
def test_truncation_of_a_power_is_what_is_extrapolated(power: float) -> None:
    """Where log p_t = log p − c (σ/α)^{2p} all along, c (σ/α)^{2p} at the first time of a network of discrete time."""
    sde, c = sd.DDPMChain.linear(1000), torch.tensor([300.0, 500.0], dtype=torch.float64)
    denoiser = sd.Denoiser(lambda x, label: x, sde, noise_label="discrete")

    def lost(t: float) -> Tensor:
        return c * math.exp(-power * float(sde.log_snr(time(t))))

    found = likelihood._truncation(lambda t: lost(1e-3) - lost(t), denoiser, 1e-3, wide=True)
    torch.testing.assert_close(found, lost(1e-3), rtol=1e-6, atol=0.0)


def test_float32_starts_where_it_resolves_the_noise() -> None:
    """The sub-VP's σ is 1e-6 at t = 1e-5, which float32 beside x does not see: log p was off by up to 0.16 nats."""
    law, sde = correlated(2), sd.SubVPSDE()
    x = draw(law, 64)
    options: dict[str, Any] = {"divergence": "exact", "check": 64}
    narrow = sd.log_likelihood(law.denoiser(sde), x.float(), **options)
    gap = law.log_prob(x) - narrow.log_prob
    left = gap - narrow.budget.truncation[0] - narrow.budget.solver[0]
    assert abs(float(left.mean())) < 5e-3 + narrow.budget.prior


class Broken(AbstractDenoiser):
    """The denoiser of a law that fails for samples far out."""

    def __init__(self, how: str) -> None:
        super().__init__(sd.VPSDE())
        self.inner, self.how = LAWS["mixture"].denoiser(self.sde), how

    def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> Prediction:
        p = self.inner(x, t)
        far = x.detach().abs().amax(dim=1, keepdim=True) > 50.0
        if self.how == "nan":
            return Prediction(x, p.level, {"x0": torch.where(far, torch.nan, p.x0)})
        if self.how == "rough":
            return Prediction(x, p.level, {"x0": torch.where(far, (1e5 * x).sin() * 1e3, p.x0)})
        return Prediction(x.detach(), p.level, {"x0": p.x0.detach()})


@pytest.mark.parametrize(("how", "reason"), [("nan", "underflowed"), ("rough", "max_steps")])
def test_a_failed_solve_is_marked_and_the_others_finish(how: str, reason: str) -> None:
    x = draw(LAWS["mixture"], 4)
    x[2] = 100.0
    r = sd.log_likelihood(Broken(how), x, max_steps=60)
    assert list(r.reasons) == [2]
    assert reason in r.reasons[2]
    assert torch.isnan(r.log_prob[2])
    kept = [0, 1, 3]
    alone = sd.log_likelihood(Broken(how), x[:2], check=0)
    assert torch.isfinite(r.log_prob[kept]).all()
    torch.testing.assert_close(r.log_prob[:2], alone.log_prob, rtol=0, atol=1e-9)
    assert math.isfinite(r.budget.solver[0])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"x": torch.tensor([[math.nan, 0.0]])}, "1 of 2 numbers NaN or infinite"),
        ({"x": torch.zeros(3)}, r"x=\(3,\)"),
        ({"x": torch.zeros(2, 2, dtype=torch.uint8)}, "float32 or float64"),
        ({"x": torch.zeros(0, 2)}, r"x=\(0, 2\)"),
        ({"divergence": "skilling"}, "divergence='skilling'"),
        ({"probes": 0}, "probes=0"),
        ({"probe_law": "uniform"}, "probe_law='uniform'"),
        ({"rtol": 0.0}, "rtol=0"),
        ({"atol": -1.0}, "atol=-1"),
        ({"t_min": 0.0}, "t_min=0"),
        ({"t_min": 1.0}, "t_min=1.0"),
        ({"t_min": 1.5}, "t_min=1.5"),
        ({"method": "euler"}, "method='euler'"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"check": -1}, "check=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments(options: dict[str, Any], match: str) -> None:
    x = options.pop("x", draw(LAWS["mixture"], 2))
    with pytest.raises(sd.InputError, match=match):
        sd.log_likelihood(LAWS["mixture"].denoiser(sd.VPSDE()), x, **options)


def test_a_denoiser_without_gradient_is_refused() -> None:
    with pytest.raises(sd.InputError, match="no gradient"):
        sd.log_likelihood(Broken("detached"), draw(LAWS["mixture"], 2))


def test_discrete_networks_start_at_their_first_time() -> None:
    chain = sd.DDPMChain.linear()
    labels: list[float] = []
    net = network()

    def spy(x: Tensor, label: Tensor) -> Tensor:
        labels.append(float(label.min()))
        return net(x, label)

    denoiser = sd.Denoiser(spy, chain, noise_label="discrete")
    sd.log_likelihood(denoiser, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), check=0)
    assert min(labels) == pytest.approx(0.0, abs=1e-3)  # index 0, not a time that the network never saw


def test_tolerance_is_chosen_by_the_statistical_error() -> None:
    law = LAWS["gaussian 16"]
    x = draw(law, 16)
    denoiser = law.denoiser(sd.VPSDE())
    few = choose_tolerance(denoiser, x, 10, divergence="exact")
    many = choose_tolerance(denoiser, x, 10**9, divergence="exact")
    assert many.value < few.value
    exact = sd.log_likelihood(denoiser, x, divergence="exact", rtol=1e-10, atol=1e-10, check=0).log_prob
    for chosen in (few, many):
        got = sd.log_likelihood(denoiser, x, divergence="exact", rtol=chosen.value, atol=chosen.value, check=0).log_prob
        assert chosen.sufficient
        assert abs(float((got - exact).mean())) <= 0.15 * chosen.statistical  # 0.1, and what the estimate itself misses
    assert few.statistical == pytest.approx(float(exact.std()) / math.sqrt(10), rel=0.01)
    hopeless = choose_tolerance(denoiser, x, 10**18, divergence="exact")
    assert not hopeless.sufficient
    with pytest.raises(sd.InputError, match="at least 2"):
        choose_tolerance(denoiser, x[:1], 10)


def test_tolerance_leaves_a_tenth_of_the_statistical_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a solver whose error is known, 7 nats times the tolerance, the rung is computed: a decade changes 6.3 nats."""
    values = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    @dataclass
    class Solved:
        log_prob: Tensor

    def solve(denoiser: object, x: Tensor, rtol: float, **options: Any) -> Solved:
        return Solved(values + 7.0 * rtol)

    monkeypatch.setattr(likelihood, "log_likelihood", solve)
    law = LAWS["gaussian 2"]
    for rung in range(len(likelihood.TOLERANCES) - 2):
        for share, chosen in ((0.099, rung), (0.101, rung + 1)):  # of the statistical error, that the rung's error is
            error = 6.3 * likelihood.TOLERANCES[rung]
            found = choose_tolerance(law.denoiser(sd.VPSDE()), draw(law, 8), _samples_for(values, error / share))
            there = min(chosen, len(likelihood.TOLERANCES) - 3)
            assert found.value == likelihood.TOLERANCES[there]
            assert found.sufficient == (chosen == there)
            assert found.solver[0] == pytest.approx(-6.3 * found.value, rel=1e-6)


def _samples_for(values: Tensor, error: float) -> int:
    """Return how many samples have the standard error, to the nearest whole number; of the largest some 3,000."""
    return round((float(values.std()) / error) ** 2)


def test_standard_errors_are_of_means() -> None:
    """std/√n with n − 1 degrees of freedom, of finite values; by SciPy, and of two probes by hand."""
    values = torch.tensor([1.0, 4.0, -2.0, 0.5, math.nan], dtype=torch.float64)
    assert mean_and_error(values) == pytest.approx((float(values[:4].mean()), float(sem(values[:4]))))
    law, options = LAWS["gaussian 16"], {"rtol": 1e-7, "atol": 1e-7, "check": 0}
    x = draw(law, 3)
    one, two = (sd.log_likelihood(law.denoiser(sd.VPSDE()), x, probes=k, seed=4, **options) for k in (1, 2))
    # The mean of two probes is as far from either as their standard error, half of what is between them.
    torch.testing.assert_close((two.log_prob - one.log_prob).abs(), two.std_error, rtol=0.0, atol=1e-4)
    assert two.budget.probes == pytest.approx(float(two.std_error.square().sum().sqrt()) / 3)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bits_of_uniform_data_are_log2_levels(levels: int) -> None:
    for width in (1.0, 2.0, 2.0 * levels / (levels - 1)):
        log_prob = torch.tensor([-12 * math.log(width)], dtype=torch.float64)  # uniform over an interval, 12 dimensions
        bits = sd.bits_per_dim(log_prob, (3, 2, 2), levels=levels, scale=width)
        assert float(bits) == pytest.approx(math.log2(levels), abs=1e-12)
    shifted = sd.bits_per_dim(log_prob, (3, 2, 2), levels=levels, scale=2.0 * width)
    assert float(bits - shifted) == pytest.approx(1.0, abs=1e-12)  # log2 of the scale
    normal = sd.bits_per_dim(torch.tensor([-math.log(8.0)]), (3,), levels=1, scale=1.0)
    assert float(normal) == pytest.approx(1.0)
    for bad in ({"levels": 0}, {"levels": 2, "scale": 0.0}):
        with pytest.raises(sd.InputError):
            sd.bits_per_dim(log_prob, (3, 2, 2), **bad)  # type: ignore[arg-type]


def test_importance_weights_tighten() -> None:
    log_prob = torch.randn(8, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tight = importance_weighted(log_prob)
    torch.testing.assert_close(tight.exp(), log_prob.exp().mean(dim=0))
    assert (tight >= log_prob.mean(dim=0)).all()
    assert torch.equal(importance_weighted(log_prob[:1]), log_prob[0])


def test_every_registered_sde_is_covered() -> None:
    assert set(SDES.names()) >= {"vp", "subvp", "ve", "cosine", "ddpm"}
