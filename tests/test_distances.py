"""Distances against closed forms, standard errors against repetition, p-values against the uniform law."""

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.evaluation import distances, kernels
from sde_diffusion.evaluation.distances import (
    energy_distance,
    nearest_distances,
    sliced_wasserstein,
    thinned,
    two_sample_test,
)


def mean_abs_normal(mean: float, std: float) -> float:
    """E|Z| for Z ~ N(mean, std²): the mean of a folded normal."""
    spread = std * math.sqrt(2.0 / math.pi) * math.exp(-0.5 * (mean / std) ** 2)
    return spread + mean * math.erf(mean / (std * math.sqrt(2.0)))


def normals(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("mean", "std"), [(0.5, 1.0), (0.0, 2.0), (-1.0, 0.3)])
def test_energy_distance_of_gaussians_is_the_closed_form(mean: float, std: float) -> None:
    exact = 2.0 * mean_abs_normal(mean, math.hypot(1.0, std)) - mean_abs_normal(0.0, math.sqrt(2.0))
    exact -= mean_abs_normal(0.0, std * math.sqrt(2.0))
    estimate = energy_distance(normals(1, 4000, 1), mean + std * normals(2, 3000, 1))
    assert estimate.std_error < 0.1 * exact  # else the next line says nothing
    assert abs(estimate.value - exact) < 4.0 * estimate.std_error


def test_energy_distance_matches_its_definition_on_few_points() -> None:
    x, y = normals(3, 5, 2, 3), normals(4, 4, 2, 3)

    def total(a: Tensor, b: Tensor) -> float:
        return sum(float((p - q).norm()) for p in a for q in b)

    def definition(a: Tensor, b: Tensor) -> float:
        own = [total(c, c) / (len(c) * (len(c) - 1)) for c in (a, b)]
        return 2.0 * total(a, b) / (len(a) * len(b)) - sum(own)

    estimate = energy_distance(x, y)
    assert estimate.value == pytest.approx(definition(x, y), rel=1e-5)


def repeated(shift: float, repetitions: int = 200) -> tuple[Tensor, Tensor]:
    """Values and standard errors of repeated estimates between N(0, I) and N(shift, I) in three dimensions."""
    pairs = [(normals(2 * i, 60, 3), normals(2 * i + 1, 50, 3) + shift) for i in range(repetitions)]
    results = [energy_distance(x, y) for x, y in pairs]
    return torch.tensor([r.value for r in results]), torch.tensor([r.std_error for r in results])


def test_energy_distance_is_unbiased_at_zero() -> None:
    values, std_errors = repeated(shift=0.0)
    assert abs(values.mean()) < 4.0 * values.std() / math.sqrt(len(values))
    assert (values < 0).any()
    assert std_errors.isnan().double().mean() > 0.95  # of a weighted χ² of some three degrees of freedom: too skewed


def test_standard_error_is_the_spread_over_repetitions() -> None:
    values, std_errors = repeated(shift=2.0)
    # 200 repetitions know a standard deviation to 5 %: four of these either way.
    assert 0.8 < std_errors.square().mean().sqrt() / values.std() < 1.25


def test_nearest_distances_are_those_of_brute_force() -> None:
    x, reference = normals(5, 30, 1, 4, 4), normals(6, 70, 1, 4, 4)
    brute = torch.stack([(reference - one).flatten(1).norm(dim=1).min() for one in x])
    found = nearest_distances(x, reference)
    assert found.shape == (30,)
    torch.testing.assert_close(found, brute.double())
    assert nearest_distances(reference[3:9], reference).max() < 1e-6


def test_results_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normals(7, 33, 8), normals(8, 41, 8) + 2.0
    whole, nearest = energy_distance(x, y), nearest_distances(x, y)
    sliced, test = sliced_wasserstein(x, y), two_sample_test(x, y)
    monkeypatch.setattr(distances, "_CHUNK", 1000)
    monkeypatch.setattr(kernels, "_CHUNK", 1000)
    assert vars(sliced_wasserstein(x, y)) == pytest.approx(vars(sliced), rel=1e-12)
    assert two_sample_test(x, y).statistic == pytest.approx(test.statistic, rel=1e-9)
    assert two_sample_test(x, y).p_value == test.p_value
    monkeypatch.setattr(distances, "_CHUNK", 100)
    monkeypatch.setattr(kernels, "_CHUNK", 100)
    assert energy_distance(x, y).value == pytest.approx(whole.value, rel=1e-6)
    assert energy_distance(x, y).std_error == pytest.approx(whole.std_error, rel=1e-6)
    torch.testing.assert_close(nearest_distances(x, y), nearest)


@pytest.mark.parametrize(("shift", "scale"), [(0.7, 1.0), (0.0, 1.6), (1.0, 0.5)])
def test_sliced_distance_of_gaussians_is_the_closed_form(shift: float, scale: float) -> None:
    """SW₂² = |m|²/D + (s − 1)²: the mean of (θ·m)² is |m|²/D, and every projection of N(0, s² I) is N(0, s²)."""
    x, y = normals(1, 10_000, 3), scale * normals(2, 8_000, 3) + shift
    estimate = sliced_wasserstein(x, y)
    exact = math.sqrt(shift**2 + (scale - 1.0) ** 2)
    assert estimate.std_error < 0.1 * exact  # else the next line says nothing
    # Its square is too large by (1/n + 1/m) J; J of normals grows as log log n, and is between 3 and 5 here.
    assert abs(estimate.value - exact) < 4.0 * estimate.std_error + 5.0 * (1.0 / 10_000 + 1.0 / 8_000) / (2.0 * exact)


def test_sliced_distance_on_few_points_is_that_of_the_quantile_functions() -> None:
    """n = 4 and m = 6, both repeated to 12 points: transport of equal numbers on a line sorts them."""
    x, y = normals(3, 4, 1).double(), normals(4, 6, 1).double()
    one, other = x.repeat_interleave(3, dim=0).sort(dim=0).values, y.repeat_interleave(2, dim=0).sort(dim=0).values
    exact = (one - other).square().mean().sqrt().item()
    assert sliced_wasserstein(x, y).value == pytest.approx(exact, rel=1e-12)
    assert sliced_wasserstein(y, x).value == pytest.approx(exact, rel=1e-12)
    assert sliced_wasserstein(x, x + 3.0).value == pytest.approx(3.0, rel=1e-12)
    assert sliced_wasserstein(x, x.flip(0)) == sliced_wasserstein(x, x)
    assert sliced_wasserstein(x, x).value < 1e-12


@pytest.mark.parametrize(
    ("shift", "scale", "projections", "low", "high"),
    [
        # 200 repetitions know a standard deviation to 5 %: four of these either way.
        (0.7, 1.0, 100, 0.8, 1.25),
        (0.0, 1.5, 100, 0.8, 1.25),
        (1.0, 1.0, 6, 0.8, 1.35),  # mostly of the directions; the root bends, which few of them feel
        (0.0, 1.0, 100, 0.95, 1.8),  # equal laws: only pairs contribute, as for the jackknife, √2 too large at most
    ],
)
def test_sliced_standard_error_is_the_spread_over_repetitions(
    shift: float, scale: float, projections: int, low: float, high: float
) -> None:
    found = [
        sliced_wasserstein(
            normals(2 * i, 120, 3), scale * normals(2 * i + 1, 100, 3) + shift, projections=projections, seed=i
        )
        for i in range(200)
    ]
    values, errors = (torch.tensor([getattr(one, name) for one in found]) for name in ("value", "std_error"))
    assert low < errors.square().mean().sqrt() / values.std() < high


def test_p_values_of_equal_laws_are_uniform() -> None:
    """Less a share of the step 1/200 they are exactly uniform; a false alarm has a chance of 10⁻⁴."""
    from scipy.stats import kstest

    step = 1.0 / 200.0
    pairs = [(normals(2 * i, 20, 2), normals(2 * i + 1, 15, 2)) for i in range(400)]
    p = [two_sample_test(x, y, permutations=199, seed=i).p_value for i, (x, y) in enumerate(pairs)]
    share = torch.rand(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spread = torch.tensor(p, dtype=torch.float64) - step * share
    assert kstest(spread.numpy(), "uniform").pvalue > 1e-4


def test_p_values_of_different_laws_are_small() -> None:
    """Means 0.7·√3 = 1.2 deviations apart, 50 samples: Hotelling's test has power 0.9996 at level 0.05."""
    pairs = [(normals(2 * i, 50, 3), normals(2 * i + 1, 50, 3) + 0.7) for i in range(50)]
    assert sum(two_sample_test(x, y, permutations=199).p_value <= 0.05 for x, y in pairs) >= 48
    x, y = pairs[0]
    assert two_sample_test(x, y + 9.0, permutations=99).p_value == 0.01  # the least there is


def test_statistic_of_a_two_sample_test_is_the_energy_distance() -> None:
    x, y = normals(3, 30, 2, 3), normals(4, 20, 2, 3)
    # A point's distance to itself comes out of squares, as up to √(2⁻⁵² · 6) = 4 · 10⁻⁸, and is left out or is not.
    assert two_sample_test(x, y).statistic == pytest.approx(energy_distance(x, y).value, abs=4e-8)
    assert two_sample_test(x, x).p_value > 0.9  # the distance is then the least that any labels give, nearly
    assert two_sample_test(torch.ones(5, 2), torch.ones(4, 2)).p_value == 1.0  # ties count
    assert two_sample_test(x, y, seed=1) == two_sample_test(x, y, seed=1)


def test_large_sets_are_thinned() -> None:
    x, y = normals(5, 1700, 2), normals(6, 1200, 2)
    few = thinned(x, 1000, seed=3)
    assert len(few.unique(dim=0)) == 1000
    assert torch.isin(few, x).all()
    assert thinned(x, 1700) is x
    found, small = two_sample_test(x, y, permutations=9, seed=3), energy_distance(few, thinned(y, 1000, seed=3))
    assert found.statistic == pytest.approx(small.value, abs=4e-8)


def test_place_does_not_matter() -> None:
    """10⁶ deviations from the origin: without centring the rounding of squares, 10¹² · 2⁻⁵³, would be near 0.01."""
    x, y = normals(7, 60, 3).double(), normals(8, 50, 3).double() + 2.0
    for distance in (energy_distance, sliced_wasserstein, two_sample_test):
        here, there = vars(distance(x, y)), vars(distance(x + 1e6, y + 1e6))
        assert there == pytest.approx(here, rel=1e-6)  # of adding: 10⁶ · 2⁻⁵³ = 10⁻¹⁰, over distances of 10⁻²


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 4), torch.zeros(5, 4), r"x\.shape=\(2, 4\): expected 3 samples or more"),
        (torch.zeros(5, 4), torch.tensor(1.0), r"y\.shape=\(\): expected 3 samples or more"),
        (torch.zeros(5, 4), torch.zeros(5, 3), r"y\.shape=\(5, 3\): expected \(\*, 4,\) as in x"),
        (torch.zeros(5, 4), torch.full((5, 4), math.nan), "y: 20 of its 20 numbers are NaN or infinite"),
    ],
)
def test_bad_samples_are_named(x: Tensor, y: Tensor, message: str) -> None:
    for distance in (energy_distance, sliced_wasserstein, two_sample_test):
        with pytest.raises(InputError, match=message):
            distance(x, y)


def test_too_few_directions_or_permutations_are_refused() -> None:
    x = normals(9, 5, 2)
    with pytest.raises(InputError, match="projections=1: expected a whole number of at least 2"):
        sliced_wasserstein(x, x, projections=1)
    with pytest.raises(InputError, match="permutations=0: expected a whole number of at least 1"):
        two_sample_test(x, x, permutations=0)


def test_nearest_distances_need_a_reference() -> None:
    with pytest.raises(InputError, match=r"reference\.shape=\(0, 4\)"):
        nearest_distances(torch.zeros(5, 4), torch.zeros(0, 4))
