"""The energy distance against closed forms, its standard error against repetition, neighbours against brute force."""

import math

import pytest
import torch
from torch import Tensor

from sde_diffusion.errors import InputError
from sde_diffusion.evaluation import distances
from sde_diffusion.evaluation.distances import energy_distance, nearest_distances


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
    without_x = torch.tensor([definition(torch.cat([x[:i], x[i + 1 :]]), y) for i in range(5)])
    without_y = torch.tensor([definition(x, torch.cat([y[:i], y[i + 1 :]])) for i in range(4)])
    variance = 4.0 / 5.0 * (without_x - without_x.mean()).square().sum()
    variance += 3.0 / 4.0 * (without_y - without_y.mean()).square().sum()
    assert estimate.std_error == pytest.approx(variance.sqrt().item(), rel=1e-4)


def repeated(shift: float, repetitions: int = 200) -> tuple[Tensor, Tensor]:
    """Values and standard errors of repeated estimates between N(0, I) and N(shift, I) in three dimensions."""
    pairs = [(normals(2 * i, 60, 3), normals(2 * i + 1, 50, 3) + shift) for i in range(repetitions)]
    results = [energy_distance(x, y) for x, y in pairs]
    return torch.tensor([r.value for r in results]), torch.tensor([r.std_error for r in results])


def test_energy_distance_is_unbiased_at_zero() -> None:
    values, std_errors = repeated(shift=0.0)
    assert abs(values.mean()) < 4.0 * values.std() / math.sqrt(len(values))
    assert (values < 0).any()
    assert 1.0 < std_errors.square().mean().sqrt() / values.std() < 1.8  # √2 in the limit: never too small


def test_standard_error_is_the_spread_over_repetitions() -> None:
    values, std_errors = repeated(shift=0.7)
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
    x, y = normals(7, 33, 8), normals(8, 41, 8)
    whole, nearest = energy_distance(x, y), nearest_distances(x, y)
    monkeypatch.setattr(distances, "_CHUNK", 100)
    assert energy_distance(x, y).value == pytest.approx(whole.value, rel=1e-6)
    assert energy_distance(x, y).std_error == pytest.approx(whole.std_error, rel=1e-6)
    torch.testing.assert_close(nearest_distances(x, y), nearest)


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
    with pytest.raises(InputError, match=message):
        energy_distance(x, y)


def test_nearest_distances_need_a_reference() -> None:
    with pytest.raises(InputError, match=r"reference\.shape=\(0, 4\)"):
        nearest_distances(torch.zeros(5, 4), torch.zeros(0, 4))
