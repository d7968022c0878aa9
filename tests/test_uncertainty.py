"""Standard errors of metrics: of 1,000 repetitions in how many does value ± 1.96 errors cover what it should."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import binom, sem
from torch import Tensor

from sde_diffusion.evaluation.distances import energy_distance
from sde_diffusion.evaluation.frechet import frechet, frechet_distance
from sde_diffusion.evaluation.kernels import cubic, squared_mmd
from sde_diffusion.evaluation.metrics import Comparison, Features, inception_score, kernel_distance
from sde_diffusion.evaluation.precision_recall import precision_recall
from sde_diffusion.evaluation.uncertainty import PAIRED, plus_minus, spread
from sde_diffusion.noise import generator

REPETITIONS = 1000


@dataclass(frozen=True)
class Setting:
    """Normal laws N(m, s²) of samples and N(0, I) of data, in many dimensions.

    Attributes:
        kind: "equal", "shifted" by a distance of ``by``, or "other covariance", deviations from 0.5 to 1.5.
        features, n, m: dimensions, samples, data.
    """

    kind: str
    features: int
    n: int
    m: int
    by: float = 1.0

    def draw(self, seed: int) -> tuple[Tensor, Tensor]:
        """Return samples and data."""
        random = generator(seed, "repetitions")
        x, y = (torch.randn(count, self.features, generator=random) for count in (self.n, self.m))
        if self.kind == "shifted":
            x += self.by / math.sqrt(self.features)
        if self.kind == "other covariance":
            x *= self.deviations
        return x, y

    @property
    def deviations(self) -> Tensor:
        """Standard deviations of another covariance."""
        return torch.linspace(0.5, 1.5, self.features)

    @property
    def frechet(self) -> float:
        """The distance of the laws: the square of that of means, and of deviations."""
        if self.kind == "other covariance":
            return float((self.deviations - 1.0).square().sum())
        return self.by**2 if self.kind == "shifted" else 0.0


Found = dict[str, tuple[float, float]]


def repeated(measured: Callable[[int], Found], repetitions: int) -> dict[str, np.ndarray]:
    """Return values and errors of repetitions by name, (2, repetitions)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small matrices
    try:
        found = [measured(seed) for seed in range(repetitions)]
    finally:
        torch.set_num_threads(threads)
    return {name: np.array([one[name] for one in found]).T for name in found[0]}


def assert_covers(name: str, found: np.ndarray, expected: float | None = None, shown: bool = True) -> None:
    """Assert the coverage of an expectation, by default the mean of the values.

    That mean is known to 1/√1000 = 0.03 standard errors, which moves the coverage of 1.96 by less than 0.1 %.

    Args:
        shown: whether errors are stated there: in 90 % or more; otherwise those that are miss in 8 % of all at most.
    """
    value, error = found
    known = np.isfinite(error)
    covers = np.abs(value - (value.mean() if expected is None else expected)) <= 1.96 * error
    said = f"{name}: {known.mean():.1%} shown, {covers[known].mean():.1%} of them cover" if known.any() else name
    assert (known.mean() >= 0.9) == shown, said
    if shown:
        low, high = bounds(int(known.sum()))
        assert low <= covers[known].sum() <= high, said
    else:
        assert (known & ~covers).mean() <= 0.08, said


def bounds(count: int) -> tuple[float, float]:
    """Return how many of so many intervals may cover: 92 to 98 % of 1,000, of fewer what has a chance of 10⁻³ then."""
    if count >= 0.9 * REPETITIONS:
        return 0.92 * count, 0.98 * count
    return binom.ppf(1e-3, count, 0.92), binom.isf(1e-3, count, 0.98)


def distances(setting: Setting, seed: int) -> Found:
    x, y = setting.draw(seed)
    fd, energy = frechet_distance(x, y, seed), energy_distance(x, y)
    kid, spread = squared_mmd(x.double(), y.double(), cubic, seed)
    return {
        "FD": (fd.finite.value, fd.finite.std_error),
        "FD ∞": (fd.limit.value, fd.limit.std_error),
        "KID": (kid, spread.std_error),
        "energy distance": (energy.value, energy.std_error),
    }


def assert_distances_cover(setting: Setting, repetitions: int, hidden: set[str]) -> None:
    found = repeated(lambda seed: distances(setting, seed), repetitions)
    exact = {"FD ∞": setting.frechet} | (
        dict.fromkeys(("KID", "energy distance"), 0.0) if setting.kind == "equal" else {}
    )
    for name, each in found.items():
        assert_covers(f"{setting}: {name}", each, exact.get(name), name not in hidden)


ALL = {"FD", "FD ∞", "KID", "energy distance"}
BY_KERNEL = {"KID", "energy distance"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "hidden"),
    [
        (Setting("equal", 4, 200, 300), ALL),
        (Setting("shifted", 4, 200, 300, by=1.5), set()),
        (Setting("shifted", 4, 1000, 500), set()),
        (Setting("shifted", 4, 200, 200, by=0.3), ALL),
        (Setting("other covariance", 4, 1000, 500), {"energy distance"}),
        (Setting("equal", 16, 200, 200), BY_KERNEL),
        (Setting("equal", 16, 1000, 500), BY_KERNEL),
        (Setting("shifted", 16, 300, 200), set()),
        (Setting("other covariance", 16, 200, 200), BY_KERNEL),
        (Setting("equal", 64, 640, 640), {"energy distance"}),
        (Setting("shifted", 64, 400, 500), {"FD ∞"}),
        (Setting("other covariance", 64, 1000, 640), set()),
    ],
    ids=str,
)
def test_distances_cover(setting: Setting, hidden: set[str]) -> None:
    assert_distances_cover(setting, REPETITIONS, hidden)


def test_distances_cover_in_few_repetitions() -> None:
    assert_distances_cover(Setting("shifted", 16, 200, 200), 150, set())


def shares(setting: Setting, seed: int) -> Found:
    found = precision_recall(*setting.draw(seed), seed)
    return {name: (one.value, one.std_error) for name, one in vars(found).items()}


def assert_shares_cover(setting: Setting, repetitions: int, shown: bool) -> None:
    for name, each in repeated(lambda seed: shares(setting, seed), repetitions).items():
        assert_covers(f"{setting}: {name}", each, shown=shown)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        (Setting("equal", 4, 400, 400), True),
        (Setting("shifted", 4, 300, 300), True),
        (Setting("shifted", 4, 200, 200, by=3.0), False),
        (Setting("equal", 16, 200, 200), True),
        (Setting("shifted", 16, 400, 300), True),
        (Setting("other covariance", 16, 400, 400), True),
        (Setting("equal", 64, 300, 300), True),
        (Setting("other covariance", 64, 200, 200), True),
    ],
    ids=str,
)
def test_shares_cover(setting: Setting, shown: bool) -> None:
    assert_shares_cover(setting, REPETITIONS, shown)


def test_shares_cover_in_few_repetitions() -> None:
    assert_shares_cover(Setting("equal", 16, 200, 200), 100, True)


def test_shares_are_those_of_third_neighbours() -> None:
    """Precision: the share of samples within the ball about an example that reaches to its third nearest other one."""
    x, y = (part.double() for part in Setting("shifted", 2, 30, 40).draw(0))

    def share(points: Tensor, centres: Tensor) -> float:
        radii = [sorted(float((a - b).norm()) for b in centres)[3] for a in centres]  # the nearest is itself
        return sum(any((p - a).norm() <= r for a, r in zip(centres, radii, strict=True)) for p in points) / len(points)

    found = precision_recall(x, y)
    assert found.precision.value == pytest.approx(share(x, y))
    assert found.recall.value == pytest.approx(share(y, x))


def test_variance_of_single_points_is_that_of_means() -> None:
    """Without pairs a distance is the sum of two means: var ℓ(x)/n + var ℓ(y)/m."""
    x, y = torch.randn(12, dtype=torch.float64), 2.0 * torch.randn(7, dtype=torch.float64)
    none = torch.zeros(12, 12), torch.zeros(12, 7), torch.zeros(7, 7)
    found = spread((x, y), (torch.arange(12), torch.arange(7)), none)
    assert found.variance == pytest.approx(float(sem(x) ** 2 + sem(y) ** 2))
    assert found.pairs == 0.0


def scores(logits: Callable[[torch.Generator], Tensor], seed: int) -> Found:
    features = Features(torch.zeros(1, 1), logits(generator(seed, "repetitions")))
    found = inception_score(Comparison(features, features, "FD", seed=seed))
    return {"IS": (found["IS"], found["IS error"])}


def of_classes(n: int, sure: float, uneven: float = 0.0) -> Callable[[torch.Generator], Tensor]:
    """Logits of ten classes, one of which is favoured; with ``uneven`` the first classes are more frequent."""

    def draw(random: torch.Generator) -> Tensor:
        weights = torch.exp(-uneven * torch.arange(10.0))
        chosen = torch.nn.functional.one_hot(torch.multinomial(weights, n, True, generator=random), 10)
        return torch.randn(n, 10, generator=random) + sure * chosen

    return draw


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 200, 1000])
@pytest.mark.parametrize(("sure", "uneven"), [(0.0, 0.0), (3.0, 0.0), (12.0, 0.0), (5.0, 0.5)])
def test_scores_cover(n: int, sure: float, uneven: float) -> None:
    found = repeated(lambda seed: scores(of_classes(n, sure, uneven), seed), REPETITIONS)
    assert_covers("IS", found["IS"])


def test_scores_cover_in_few_repetitions() -> None:
    assert_covers("IS", repeated(lambda seed: scores(of_classes(100, 3.0), seed), 200)["IS"])


def test_subsets_of_kid_are_disjoint() -> None:
    """Their mean has no bias either, and an error where all at once are too skewed."""

    def measured(seed: int) -> Found:
        x, y = (Features(part, None) for part in Setting("equal", 4, 600, 500).draw(seed))
        found = kernel_distance(Comparison(x, y, "FD", kid_subset=12, seed=seed))
        return {"KID": (found["KID"], found["KID error"])}

    assert_covers("KID", repeated(measured, 200)["KID"], 0.0)


def test_kernel_distance_is_its_definition() -> None:
    """Sums over pairs that differ, of two sizes, against torch-fidelity's of one size where that applies."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = (part.double() for part in Setting("shifted", 3, 9, 7).draw(0))

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / 3.0 + 1.0) ** 3)

    own = [sum(k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j) for z in (x, y)]
    cross = sum(k(a, b) for a in x for b in y)
    assert squared_mmd(x, y, cubic)[0] == pytest.approx(own[0] / 72 + own[1] / 42 - 2 * cross / 63, rel=1e-9)
    theirs = kid_features_to_metric(x[:7], y, kid_subset_size=7, kid_subsets=1, verbose=False)
    assert squared_mmd(x[:7], y, cubic)[0] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_influence_of_the_frechet_distance_is_its_derivative() -> None:
    """Leaving out a point changes it by −ℓ/(n − 1), to 1/n: of 3,000 points the jackknife is that of ℓ."""
    x, y = (part.double() for part in Setting("other covariance", 3, 3000, 3000).draw(0))
    values = [
        torch.tensor([frechet(torch.cat([a[:i], a[i + 1 :]]), b) for i in range(300)]) for a, b in ((x, y), (y, x))
    ]
    jackknife = sum(float(part.var()) * 2999.0 for part in values)  # (n − 1)² var/n, of the first 300 of 3,000
    said = frechet_distance(x, y).finite.std_error ** 2
    assert said == pytest.approx(jackknife, rel=0.5)  # the variance of 300 heavy-tailed values: 4 · √(κ/300), κ = 5


def test_the_limit_is_without_the_bias() -> None:
    """Of equal laws in 20 dimensions: 0, where the distance of 400 and 400 is near F (F + 3)/(4 · 200) = 0.6."""
    setting = Setting("equal", 20, 400, 400)
    found = np.array([vars(frechet_distance(*setting.draw(seed), seed))["limit"].value for seed in range(20)])
    plain = np.array([frechet(*setting.draw(seed)) for seed in range(20)])
    assert plain.mean() > 0.5
    assert abs(found.mean()) < 4.0 * found.std() / math.sqrt(20) + 0.02 * plain.mean()


def test_no_error_is_shown_where_none_covers() -> None:
    few = frechet_distance(*Setting("shifted", 16, 79, 200).draw(0))  # 79 < 5 · 16
    assert math.isnan(few.finite.std_error)
    assert math.isnan(few.limit.std_error)
    some = frechet_distance(*Setting("shifted", 16, 159, 200).draw(0))  # 159 < 10 · 16
    assert some.finite.std_error > 0.0
    assert math.isnan(some.limit.std_error)
    assert math.isnan(frechet_distance(*Setting("equal", 16, 32, 40).draw(0)).limit.value)  # halves of 16 points
    near = precision_recall(*Setting("equal", 4, 60, 60).draw(0))  # fewer than 10 of 60 outside
    assert near.precision.value > 50 / 60
    assert math.isnan(near.precision.std_error)


def test_features_that_never_fire_change_nothing() -> None:
    """A unit that is 0 in samples, in data or in both, as of a network's rectifiers."""
    x, y = Setting("shifted", 8, 300, 200).draw(0)
    plain = frechet_distance(x, y)
    dead = frechet_distance(*(torch.cat([part, torch.zeros(len(part), 2)], dim=1) for part in (x, y)))
    for name in ("finite", "limit"):
        assert vars(getattr(dead, name)) == pytest.approx(vars(getattr(plain, name)), rel=1e-6)
    x[:, 0] = 0.0
    assert frechet_distance(x, y).finite.std_error > 0.0
    assert frechet_distance(y, x).finite.std_error == pytest.approx(frechet_distance(x, y).finite.std_error, rel=0.2)


def test_many_points_are_thinned_for_their_pairs() -> None:
    """The error of 5 times as many points hangs on which of them are looked at by no more than the rounding of V₂."""
    x, y = (part.double() for part in Setting("shifted", 16, 5 * PAIRED, 5 * PAIRED).draw(0))
    errors = [squared_mmd(x, y, cubic, seed)[1].std_error for seed in range(5)]
    assert max(errors) == pytest.approx(min(errors), rel=0.02)


def test_intervals_in_words() -> None:
    assert plus_minus(8.123, 0.4) == "8.123 ± 0.78"
    assert plus_minus(8.123, math.nan) == plus_minus(8.123, None) == "8.123"
