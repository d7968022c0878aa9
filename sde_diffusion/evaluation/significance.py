"""p-values: how probable it is that what is right comes out as far off as it did.

References:
    C. Clopper, E. Pearson, 1934, Biometrika 26(4) (tails of a binomial law).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def any_of(p_values: Iterable[float]) -> float:
    """Return the p-value of several tests together, the smallest times their number (Bonferroni)."""
    found = list(p_values)
    return min(1.0, len(found) * min(found))


def count_p(count: int, n: int, share: float, allowed: float) -> float:
    """Return the p-value of a count of n, whose probability is ``share`` or ``allowed`` less or more."""
    from scipy.stats import binom

    above = binom.sf(count - 1, n, min(share + allowed, 1.0))
    below = binom.cdf(count, n, max(share - allowed, 0.0))
    return min(1.0, 2.0 * float(min(above, below)))


def mean_p(values: Tensor, mean: float, allowed: float = 0.0) -> float:
    """Return the p-value of independent values (N,) whose expectation is ``mean``, or ``allowed`` less or more."""
    n = len(values)
    return two_sided(float(values.mean()) - mean, float(values.std()) / math.sqrt(n), n - 1, allowed)


def two_sided(difference: float, std_error: float, freedom: int, allowed: float = 0.0) -> float:
    """Return the p-value of a difference by Student's law."""
    from scipy.stats import t as student

    return 2.0 * float(student.sf(max(abs(difference) - allowed, 0.0) / std_error, freedom))
