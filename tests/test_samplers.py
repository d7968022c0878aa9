"""Ground truths 4-9 and 15, over the registry: a sampler is tested by being registered."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import samplers
import sde_diffusion as sd
from samplers.torchsde_solvers import TORCHSDE_METHODS
from sde_diffusion.evaluation.verification import (
    T_END,
    RunFn,
    check_mixture,
    gaussian_error,
    probe,
    sampler_error,
    three_modes,
)
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import Number
from sde_diffusion.sdes import SDE
from sde_diffusion.types import NoiseFn
from tests.conftest import time

ON_GRID = [n for n in samplers.names() if "grid" in samplers.config(n)]


def build(name: str, num_steps: int = 20, **options: Any) -> samplers.Sampler:
    steps = {"num_steps": num_steps} if "num_steps" in samplers.config(name) else {}
    return samplers.build(name, **steps, **options)


def draw(sampler: samplers.Sampler, law: sd.Law, sde: SDE, n: int = 8, seed: int = 0, **options: Any) -> Tensor:
    options = {"dtype": torch.float64, **options}
    return sampler.draw(law.denoiser(sde), (n, *law.shape), seed, **options).x


def runner(sampler: samplers.Sampler) -> RunFn:
    """The sampler as the verification takes it."""
    return lambda denoiser, x, noise: sampler.sample(denoiser, x, noise).x


def ones(x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
    """One as the noise of each step."""
    return torch.ones_like(x)


@pytest.fixture(scope="module")
def net() -> sd.Denoiser:
    """A small random network, for what does not need a law."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 6))
    return sd.Denoiser(lambda x, label: layer(x.flatten(1)).reshape(x.shape), sd.VPSDE())


# Every sampler, every SDE


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("name", samplers.names())
def test_any_step_count_on_any_sde(sde: SDE, name: str, num_steps: int) -> None:
    sampler = build(name, num_steps)
    result = sampler.draw(three_modes().denoiser(sde), (3, 2), seed=1, dtype=torch.float64)
    assert result.x.shape == (3, 2)
    assert torch.isfinite(result.x).all()
    assert float(result.times[0]) == pytest.approx(sde.T if sampler.from_pure_noise else sde.t_max, abs=1e-9)
    assert float(result.times[-1]) == 0.0


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("name", samplers.names())
def test_evaluations_are_counted_and_as_declared(name: str, denoise: bool) -> None:
    calls = 0
    law = three_modes()

    class Counting(sd.AbstractDenoiser):
        def __init__(self) -> None:
            super().__init__(sd.VPSDE())
            self.exact = law.denoiser(self.sde)

        def forward(self, x: Tensor, t: NoiseLevel | Number, **conditions: Any) -> sd.Prediction:
            nonlocal calls
            calls += 1
            return self.exact(x, t)

    sampler = build(name, 10, denoise=denoise)
    result = sampler.draw(Counting(), (4, 2), dtype=torch.float64)
    assert result.nfe == result.network_calls == calls
    assert int(result.nfe_per_sample.max()) == calls
    if sampler.nfe_per_step is not None:
        steps = 9 if denoise else 10
        assert result.nfe == steps * sampler.nfe_per_step + int(denoise) + sampler.start_nfe


@pytest.mark.parametrize("name", samplers.names())
def test_declared_randomness(name: str) -> None:
    """A stochastic sampler draws noise, a deterministic one never asks for it."""
    asked = 0

    def noise(x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
        nonlocal asked
        asked += 1
        return torch.zeros_like(x)

    sampler = build(name)
    sampler.sample(three_modes().denoiser(sd.VPSDE()), torch.ones(2, 2, dtype=torch.float64), noise)
    assert (asked > 0) == sampler.stochastic


@pytest.mark.parametrize("name", samplers.names())
def test_a_sample_depends_on_seed_and_index_alone(name: str, net: sd.Denoiser) -> None:
    """Batch 1, 7 and 64, and a later start, give the same pictures.

    To rounding: a matrix product over another number of rows may add in another order. SciPy's solver sees the batch as
    one system, hence its tolerance.
    """
    sampler = build(name, 8, **({"rtol": 1e-7, "atol": 1e-7} if name == "scipy" else {}))
    shape = (1, 2, 3)
    slack = 2e-3 if sampler.host_bound else 1e-4
    whole = sampler.draw(net, (64, *shape), seed=5).x
    for first, n in ((0, 1), (17, 1), (17, 7), (57, 7)):
        part = sampler.draw(net, (n, *shape), seed=5, first_index=first).x
        torch.testing.assert_close(part, whole[first : first + n], rtol=slack, atol=slack)
    assert (sampler.draw(net, (1, *shape), seed=6).x - whole[:1]).abs().max() > 1e-2


@pytest.mark.parametrize("name", samplers.names())
def test_any_rank(name: str) -> None:
    denoiser = sd.Denoiser(lambda x, label: 0.1 * x, sd.VPSDE())
    for shape in ((2, 3), (2, 2, 5), (2, 1, 4, 4), (2, 1, 2, 2, 2)):
        assert build(name, 3).draw(denoiser, shape).x.shape == shape


@pytest.mark.parametrize("name", samplers.names())
def test_callback_sees_the_way(name: str) -> None:
    seen: list[tuple[int, float, Tensor]] = []
    sampler = build(name, 6)
    result = sampler.draw(
        three_modes().denoiser(sd.VPSDE()),
        (2, 2),
        callback=lambda i, t, x: seen.append((i, float(t.reshape(-1)[0]), x)),
    )
    assert seen[0][0] == 0
    assert seen[0][1] == pytest.approx(1.0)
    assert all(x.shape == (2, 2) for _, _, x in seen)
    assert seen[-1][1] <= 0.1
    if isinstance(sampler, samplers.GridSampler):
        assert [t for _, t, _ in seen] == result.times.tolist()
        assert torch.equal(seen[-1][2], result.x)


@pytest.mark.parametrize("name", samplers.names())
def test_memory_of_steps_is_not_kept(name: str) -> None:
    """Only the current state survives a step: earlier ones are freed (whatever the number of steps)."""
    import weakref

    references: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def watch(step: int, t: Tensor, x: Tensor) -> None:
        alive.append(sum(r() is not None for r in references))
        references.append(weakref.ref(x))

    build(name, 30).draw(sd.Denoiser(lambda x, label: 0.1 * x, sd.VPSDE()), (2, 2), callback=watch)
    assert max(alive) <= 3


# Laws


def test_point_mass(sde: SDE) -> None:
    """Ground truths 5 and 7: DDIM is exact in one step; ancestral sampling with β̃ is exact in law at any count."""
    point = sd.Empirical(torch.tensor([[0.7, -0.3]], dtype=torch.float64))
    for n in (1, 2, 7):
        x = draw(build("ddim", n), point, sde)
        torch.testing.assert_close(x, point.data.expand(8, 2))
    t_min = 0.1
    single = sd.Empirical(torch.tensor([[0.7]], dtype=torch.float64)).denoiser(sde)
    for n in (1, 3, 8):
        spread = probe(runner(build("ancestral", n, t_min=t_min, denoise=False)), single)
        start = float(sde.alpha(time(sde.T))) * 0.7, float(sde.sigma(time(sde.T))) ** 2
        mean, variance = spread.push(*start)
        assert mean == pytest.approx(float(sde.alpha(time(t_min))) * 0.7, rel=1e-9, abs=1e-12)
        assert variance == pytest.approx(float(sde.sigma(time(t_min))) ** 2, rel=1e-9)


def test_ddpm_variances_are_exact_on_their_data() -> None:
    """Ground truth 7: β is exact for N(0, I) data, at any step count; β̃ falls short of it."""

    def error(sde: SDE, n: int, variance: str | float) -> float:
        sampler = build("ancestral", n, t_min=0.1, denoise=False, variance=variance)
        return gaussian_error(runner(sampler), sde, 0.1, mean=0.0, variance=1.0).std

    for sde in (sd.VPSDE(), sd.CosineVPSDE(), sd.DDPMChain.linear()):
        for n in (1, 4, 16):
            assert abs(error(sde, n, "beta")) < 1e-12
    assert error(sd.VPSDE(), 4, "posterior") < error(sd.VPSDE(), 4, "0.5") < error(sd.VPSDE(), 4, 1.0) < 1e-12


def test_unadjusted_langevin_has_its_known_variance(sde: SDE) -> None:
    """Ground truth 9: the stationary variance on N(0, V) is V/(1 − ε/(2V)), exactly."""
    corrector, t = samplers.LangevinCorrector(snr=0.4), time(0.3)
    law = sd.Gaussian([0.0], [[0.5]])
    v = float(sde.alpha(t) ** 2 * 0.5 + sde.sigma(t) ** 2)
    step = 2 * (0.4 * float(sde.sigma(t))) ** 2

    def one(x: float, z: float) -> float:
        state = torch.tensor([[x]], dtype=torch.float64)
        level = sde.at(t)
        return float(corrector.correct(law.denoiser(sde), state, level, level, lambda x, t, s: torch.full_like(x, z)))

    slope, gain = one(1.0, 0.0), one(0.0, 1.0)
    assert gain**2 / (1 - slope**2) == pytest.approx(v / (1 - step / (2 * v)), rel=1e-10)
    assert samplers.build("pc", snr=0.4).limit_variance(sde, 0.3, v) == pytest.approx(v / (1 - step / (2 * v)))


def test_langevin_step_after_a_predictor(sde: SDE) -> None:
    """From t to s: the score at s, and a step 2 α_{t|s}² (snr σ_s)², as the authors' 2 α_i (snr ‖z‖/‖s‖)²."""
    mean, variance, snr, z = 0.7, 0.3, 0.4, 0.9
    times = torch.tensor([0.6, 0.5], dtype=torch.float64)
    (alpha_t, alpha_s), (_, sigma_s) = sde.alpha(times).tolist(), sde.sigma(times).tolist()
    size, x = 2.0 * (alpha_t / alpha_s) ** 2 * (snr * sigma_s) ** 2, 0.35
    score = -(x - alpha_s * mean) / (alpha_s**2 * variance + sigma_s**2)
    expected = x + size * score + math.sqrt(2.0 * size) * z
    denoiser = sd.Gaussian([mean], [[variance]]).denoiser(sde)
    for name, options in (("langevin", {}), ("pc", {"predictor": "identity"})):
        sampler = build(name, snr=snr, denoise=False, **options)
        start = torch.tensor([[x]], dtype=torch.float64)
        found = sampler.sample(denoiser, start, lambda x, t, s: torch.full_like(x, z), times=times)  # type: ignore[call-arg]
        assert float(found.x) == pytest.approx(expected, rel=1e-9)


def test_langevin_step_on_the_chain_is_the_authors() -> None:
    """α_{t|s}² is 1 − β_i, from the betas themselves."""
    betas = [0.1, 0.3, 0.2, 0.4]
    chain, snr = sd.DDPMChain(betas), 0.3
    t, s = chain.at(0.75), chain.at(0.5)
    gain = samplers.LangevinCorrector(snr).correct(
        sd.Gaussian([0.0], [[1.0]]).denoiser(chain), torch.zeros(1, 1, dtype=torch.float64), t, s, ones
    )
    sigma_s = math.sqrt(1.0 - 0.9 * 0.7)
    assert float(gain) == pytest.approx(math.sqrt(2.0 * 2.0 * (1.0 - 0.2) * (snr * sigma_s) ** 2))


def test_reverse_diffusion_on_the_chain_is_equation_46() -> None:
    """x_{i−1} = (2 − √(1 − β_i)) x_i + β_i s(x_i) + √β_i z, from the betas themselves."""
    betas = [0.1, 0.3, 0.2, 0.4]
    chain, mean, variance, x = sd.DDPMChain(betas), 0.7, 0.3, 0.35
    alpha_bar = 0.9 * 0.7 * 0.8
    score = -(x - math.sqrt(alpha_bar) * mean) / (alpha_bar * variance + 1.0 - alpha_bar)
    expected = (2.0 - math.sqrt(0.8)) * x + 0.2 * score + math.sqrt(0.2)
    denoiser, start = sd.Gaussian([mean], [[variance]]).denoiser(chain), torch.tensor([[x]], dtype=torch.float64)
    times = torch.tensor([0.75, 0.5], dtype=torch.float64)
    sampler = samplers.ReverseDiffusion(denoise=False)
    assert float(sampler.sample(denoiser, start, ones, times=times).x) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ON_GRID)
def test_every_grid_sampler_has_its_declared_order(sde: SDE, name: str) -> None:
    """Weak order on Gaussian data, without Monte Carlo error, where f and g are smooth; and where it goes is right.

    Halving a step of order p leaves 2^−p of the error: a limit that is off by itself stops the fall.
    """
    on_grid = name != "pc"  # which is taken from the start, for below it two errors of opposite sign meet
    errors = []
    for n in (240, 480) if on_grid else (64, 128):
        sampler = build(name, n, grid="uniform", t_min=T_END, denoise=False)
        errors.append(sampler_error(sampler, sde, on_grid).total)
    order = sampler.order if sde.smooth else min(sampler.order, 1)
    assert errors[1] < 1e-9 or math.log2(errors[0] / errors[1]) >= order - 0.15


@pytest.mark.parametrize("method", TORCHSDE_METHODS)
def test_every_torchsde_scheme_has_its_declared_order(method: str) -> None:
    sde = sd.VPSDE()
    errors = []
    for n in (64, 128):
        sampler = build("torchsde", n, method=method, t_min=0.2, denoise=False)
        errors.append(gaussian_error(runner(sampler), sde, 0.2).total)
    assert math.log2(errors[0] / errors[1]) >= sampler.order - 0.15
    assert errors[1] < 0.02


def test_area_of_torchsdes_increments() -> None:
    """Of dx = a x du + b dw a step h gains b W + (a b − b′) U and higher terms, with U = ∫ W = h (W/2 + √(h/12) z).

    The gains of the last step, which none after it changes: z against W/√h is (a − b′/b) h/√12, to some |a| h.
    """
    sde, n, end = sd.VPSDE(), 100, 0.2
    sampler = build("torchsde", n, method="srk", t_min=end, denoise=False)
    gains = probe(runner(sampler), sd.Gaussian([0.0], [[0.25]]).denoiser(sde)).noise_gains
    h = (sde.T - end) / n
    t = time(end + 0.5 * h).requires_grad_()
    f, g = sde.coefficients(t)
    (slope,) = torch.autograd.grad(g.log(), t)  # −b′/b: u runs against t
    a = float((-f - g**2 / (sde.alpha(t) ** 2 * 0.25 + sde.sigma(t) ** 2)).detach())
    whole, area = gains[-2:].tolist()
    assert area / whole == pytest.approx((a + float(slope)) * h / math.sqrt(12.0), rel=2.0 * abs(a) * h)


@pytest.mark.parametrize("method", TORCHSDE_METHODS)
def test_every_torchsde_scheme_keeps_the_modes(method: str) -> None:
    """500 counts, mean and spread within the modes; an unstable scheme left 2 of 500 near any mode."""
    sampler = build(
        "torchsde", 80 if TORCHSDE_METHODS[method].order == 2 else 400, method=method, t_min=0.02, denoise=False
    )
    x = sampler.draw(three_modes().denoiser(sd.VPSDE()), (500, 2), seed=0, dtype=torch.float64).x
    found = check_mixture(x, sd.VPSDE(), 0.02)
    assert found.smallest_p > 1e-6


def test_torchsde_euler_is_our_euler_maruyama() -> None:
    """The same scheme in two libraries, with the same noise."""
    law, sde, options = three_modes(), sd.VPSDE(), {"denoise": False, "t_min": 0.05}
    ours = build("euler_maruyama", 20, **options)
    theirs = build("torchsde", 20, method="euler", **options)
    torch.testing.assert_close(draw(theirs, law, sde), draw(ours, law, sde), rtol=1e-9, atol=1e-9)


def test_brownian_path_makes_step_counts_comparable() -> None:
    """With the increments of one path the strong error of Euler-Maruyama falls with the step, at order 1."""
    law, sde = three_modes(), sd.VPSDE()
    finest = 512
    z = torch.randn(finest, 100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def run(n: int) -> Tensor:
        sampler = build("euler_maruyama", n, denoise=False, t_min=0.2)
        position = 0

        def path(x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
            nonlocal position
            chunk = z[position : position + finest // n]
            position += finest // n
            return chunk.sum(0) / math.sqrt(finest // n)

        start = torch.randn(100, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return sampler.sample(law.denoiser(sde), start, path).x

    reference = run(512)
    errors = [float((run(n) - reference).norm(dim=1).mean()) for n in (32, 64, 128)]
    assert errors[0] > 1.7 * errors[1] > 2.9 * errors[2]


# Equivalences (ground truth 8)


def test_ddim_with_eta_one_is_ancestral(sde: SDE) -> None:
    law = three_modes()
    a, b = build("ancestral"), build("ddim", eta=1.0)
    torch.testing.assert_close(draw(b, law, sde), draw(a, law, sde), rtol=1e-9, atol=1e-9)


def test_ddim_is_euler_in_scaled_variables(sde: SDE) -> None:
    """x/α moves by ε times the change of σ/α."""
    law, n = three_modes(), 12
    sampler = build("ddim", n, denoise=False)
    denoiser = law.denoiser(sde)
    start = sde.prior_std * torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = sampler.times(denoiser).clamp_max(sde.t_max)  # type: ignore[attr-defined]
    found = sampler.sample(denoiser, start, lambda x, t, s: x, times=grid).x  # type: ignore[call-arg]
    y, alpha, rho = start / sde.alpha(grid[0]), sde.alpha(grid), sde.sigma(grid) / sde.alpha(grid)
    for i in range(n):
        y = y + (rho[i + 1] - rho[i]) * denoiser(alpha[i] * y, grid[i]).eps
    torch.testing.assert_close(found, alpha[-1] * y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("predictor", [n for n in ON_GRID if n != "pc"])
def test_pc_without_corrector_is_its_predictor(predictor: str) -> None:
    law, sde, grid = three_modes(), sd.VPSDE(), "uniform"
    alone, pc = build(predictor, grid=grid), build("pc", predictor=predictor, corrector="none", grid=grid)
    assert torch.equal(draw(pc, law, sde), draw(alone, law, sde))
    assert pc.order == alone.order
    assert pc.stochastic == alone.stochastic
    assert pc.nfe_per_step == alone.nfe_per_step


def test_annealed_langevin_is_pc_without_predictor() -> None:
    law, sde = three_modes(), sd.VESDE()
    options = {"grid": "log_snr", "corrector_steps": 3, "snr": 0.4}
    annealed, pc = build("langevin", **options), build("pc", predictor="identity", **options)
    assert torch.equal(draw(annealed, law, sde), draw(pc, law, sde))


def test_batch_norm_rule_is_the_papers() -> None:
    """ε = 2 (snr ‖z‖/‖s‖)² with norms averaged over the batch; close to the deterministic rule in high dimension."""
    sde, t = sd.VESDE(), time(0.5)
    law = sd.Gaussian(torch.zeros(800), 1e-4 * torch.eye(800))
    x = sde.sigma(t) * torch.randn(16, 800, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise = lambda x, t, s: sd.NoiseStream(1, range(16))(x)  # noqa: E731
    moved = [
        samplers.LangevinCorrector(0.16, rule).correct(law.denoiser(sde), x, sde.at(t), sde.at(t), noise) - x
        for rule in ("sigma", "batch_norms")
    ]
    torch.testing.assert_close(moved[1], moved[0], rtol=0.05, atol=0.05 * float(moved[0].std()))
    z, score = noise(x, sde.at(t), sde.at(t)), law.score(x, sde, t)
    size = 2.0 * (0.16 * z.norm(dim=1).mean() / score.norm(dim=1).mean()) ** 2
    torch.testing.assert_close(moved[1], size * score + (2.0 * size).sqrt() * z, rtol=1e-6, atol=1e-9)


def test_probability_flow_agrees_with_scipy(sde: SDE) -> None:
    law = three_modes()
    reference = draw(samplers.build("scipy", method="DOP853", rtol=1e-9, atol=1e-9), law, sde)
    ours = draw(samplers.build("probability_flow", rtol=1e-7, atol=1e-7), law, sde)
    torch.testing.assert_close(ours, reference, rtol=0, atol=1e-4)
    heun = draw(samplers.build("heun", num_steps=400), law, sde)
    torch.testing.assert_close(heun, reference, rtol=0, atol=2e-2)


@pytest.mark.parametrize("method", ["RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"])
def test_every_scipy_method(method: str) -> None:
    law, sde = sd.Gaussian([0.5], [[0.2]]), sd.VPSDE()
    sampler = samplers.build("scipy", method=method, rtol=1e-6, atol=1e-6, t_min=0.1, denoise=False)
    assert gaussian_error(runner(sampler), sde, 0.1).total < 1e-3
    assert draw(sampler, law, sde).shape == (8, 1)


@pytest.mark.parametrize("name", ["ancestral", "heun", "pc"])
def test_no_mode_is_dropped(sde: SDE, name: str) -> None:
    """Ground truth 4, in short: the mode counts and the mean. `verify` does it for all samplers."""
    sampler = build(name, 250 if name != "heun" else 40, t_min=0.02, denoise=False)
    check = check_mixture(draw(sampler, three_modes(), sde, n=1000), sde, 0.02)
    assert min(check.weights_p, check.mean_p) > 1e-6


def test_discrete_network_is_asked_at_its_own_times() -> None:
    seen: set[float] = set()

    def net(x: Tensor, label: Tensor) -> Tensor:
        seen.update(label.tolist())
        return 0.1 * x

    denoiser = sd.Denoiser(net, sd.VPSDE(), noise_label=sd.labels.Index(100))
    result = samplers.build("ddim", num_steps=7).draw(denoiser, (2, 3))
    assert all(label == round(label) for label in seen)
    assert len(result.times) == 8
    many = samplers.build("ddim", num_steps=1000).draw(denoiser, (2, 3))
    assert many.nfe == 100  # times that round to the same index are merged
    assert samplers.build("ddim", num_steps=9, grid="quadratic").draw(denoiser, (2, 3)).nfe <= 9


# Registry and errors


def test_third_party_sampler_and_corrector() -> None:
    @samplers.register("test_only_half")
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Half(samplers.GridSampler[None]):
        """Not a sampler of anything."""

        order, stochastic, nfe_per_step, reference = 1, False, 0, "none"

        def step(
            self, denoiser: sd.AbstractDenoiser, x: Tensor, t: NoiseLevel, s: NoiseLevel, state: None, noise: NoiseFn
        ) -> tuple[Tensor, None]:
            return 0.5 * x, None

    try:
        assert "test_only_half" in samplers.names()
        x = samplers.build("test_only_half", num_steps=3, denoise=False).sample(
            three_modes().denoiser(sd.VPSDE()), torch.ones(1, 2, dtype=torch.float64), lambda x, t, s: x
        )
        assert x.x.tolist() == [[0.125, 0.125]]
        with pytest.raises(sd.InputError, match="registered already"):
            samplers.register("test_only_half")(Half)
    finally:
        samplers.SAMPLERS._entries.pop("test_only_half")


def test_non_finite_state_names_step_and_time() -> None:
    def net(x: Tensor, label: Tensor) -> Tensor:
        return torch.where(label.reshape(-1, 1) < 500, x / 0.0, x)

    broken = sd.Denoiser(net, sd.VPSDE(), noise_label="scaled")
    with pytest.raises(sd.InputError, match=r"after step 6 of 10, from t=0\.4\d* to t=0\.3"):
        samplers.build("ddim", num_steps=10).draw(broken, (2, 3))
    for name in ("probability_flow", "scipy", "torchsde"):
        limit = {"max_steps": 200} if name == "probability_flow" else {}
        with pytest.raises(sd.InputError, match=r"not finite|gave up|max_steps=200"):
            build(name, 10, **limit).draw(broken, (2, 3))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("ddmi", {}, "did you mean 'ddim'"),
        ("ddim", {"num_step": 3}, "did you mean 'num_steps'"),
        ("ddim", {"num_steps": 0}, "num_steps=0"),
        ("ddim", {"num_steps": 2.0}, "num_steps=2.0"),
        ("ddim", {"num_steps": True}, "num_steps=True"),
        ("ddim", {"eta": 1.5}, "eta=1.5"),
        ("ddim", {"grid": "uniforn"}, "did you mean 'uniform'"),
        ("ddim", {"t_min": -0.1}, "t_min=-0.1"),
        ("ddim", {"denoise": 1}, "denoise=1"),
        ("ancestral", {"variance": "small"}, "variance='small'"),
        ("ancestral", {"variance": 1.5}, "variance=1.5"),
        ("pc", {"snr": 0.0}, "snr=0.0"),
        ("pc", {"predictor": "scipy"}, "predictor='scipy'"),
        ("pc", {"predictor": "pc"}, "predictor='pc'"),
        ("pc", {"corrector": "langevine"}, "did you mean 'langevin'"),
        ("pc", {"corrector_steps": 0}, "corrector_steps=0"),
        ("pc", {"step_rule": "norms"}, "step_rule='norms'"),
        ("langevin", {"snr": -1.0}, "snr=-1.0"),
        ("probability_flow", {"rtol": 0.0}, "rtol=0.0"),
        ("probability_flow", {"method": "rk4"}, "method='rk4'"),
        ("probability_flow", {"max_steps": 0}, "max_steps=0"),
        ("scipy", {"method": "euler"}, "method='euler'"),
        ("torchsde", {"method": "srk2"}, "method='srk2'"),
    ],
)
def test_bad_options(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(sd.InputError, match=match) as caught:
        samplers.build(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"shape": (0, 2)}, r"shape=\(0, 2\)"),
        ({"shape": (4,)}, r"shape=\(4,\)"),
        ({"shape": (2.0, 2)}, "shape="),
        ({"seed": -1}, "seed=-1"),
        ({"first_index": -1}, "first_index=-1"),
    ],
)
def test_bad_draws(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(sd.InputError, match=match):
        samplers.build("ddim").draw(three_modes().denoiser(sd.VPSDE()), **{"shape": (2, 2), **arguments})
    for times in ([0.2, 0.5], [1.5, 0.5], [0.5, 0.0], [[0.5]]):
        with pytest.raises(sd.InputError, match="times="):
            samplers.build("ddim").sample(  # type: ignore[call-arg]
                three_modes().denoiser(sd.VPSDE()), torch.ones(1, 2), lambda x, t, s: x, times=torch.tensor(times)
            )
    with pytest.raises(sd.InputError, match=r"t_min=0\.999"):
        samplers.build("ddim", t_min=0.999).draw(three_modes().denoiser(sd.CosineVPSDE()), (2, 2))
