"""The squared maximum mean discrepancy of two samples, E k(X, X′) + E k(Y, Y′) − 2 E k(X, Y), and its standard error.

The U-statistic, without the pairs of a point with itself, is unbiased at every number of samples. With k = −|x − y| it
is the energy distance, with the cubic polynomial of features KID.

References:
    A. Gretton et al., "A kernel two-sample test", 2012, JMLR 13, 723-773, Lemma 6.
    M. Bińkowski et al., 2018, arXiv:1801.01401 (KID: k(x, y) = (x·y/F + 1)³ of F features).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sde_diffusion.evaluation.uncertainty import Spread, some, spread

Kernel = Callable[[Tensor, Tensor], Tensor]
"""(n, F), (m, F) → (n, m)."""
_CHUNK = 1 << 22  # numbers held at a time: 32 MiB in float64


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """Return the kernel of KID."""
    return (x @ y.T / x.shape[1] + 1.0).pow(3)


def squared_mmd(x: Tensor, y: Tensor, kernel: Kernel, seed: int = 0) -> tuple[float, Spread]:
    """Return the unbiased squared discrepancy of two samples, and its spread over both.

    Args:
        x: (n, F) independent samples of one law, n ≥ 3.
        y: (m, F) independent samples of the other, m ≥ 3.
        kernel: of pairs.
        seed: of the points whose pairs are looked at for the spread.
    """
    n, m = len(x), len(y)
    (to_y, to_x), in_x, in_y = _sums(x, y, kernel), _own(x, kernel), _own(y, kernel)
    value = in_x.sum() / (n * (n - 1)) + in_y.sum() / (m * (m - 1)) - 2.0 * to_y.sum() / (n * m)
    influence = 2.0 * (in_x / (n - 1) - to_y / m), 2.0 * (in_y / (m - 1) - to_x / n)
    chosen = some(n, seed), some(m, seed)
    a, b = x[chosen[0]], y[chosen[1]]
    of_pairs = spread(influence, chosen, (2.0 * kernel(a, a), 2.0 * kernel(a, b), 2.0 * kernel(b, b)))
    return float(value), of_pairs


def blocks(x: Tensor, y: Tensor, kernel: Kernel) -> Iterator[tuple[int, Tensor]]:
    """Yield a few rows of the kernel at a time, and the place of the first: memory does not grow with their number."""
    step = max(1, _CHUNK // len(y))
    for start in range(0, len(x), step):
        yield start, kernel(x[start : start + step], y)


def _sums(x: Tensor, y: Tensor, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Return Σ_j k(x_i, y_j), shape (n,), and Σ_i k(x_i, y_j), shape (m,)."""
    over_x = y.new_zeros(len(y))
    over_y = []
    for _, block in blocks(x, y, kernel):
        over_x += block.sum(dim=0)
        over_y.append(block.sum(dim=1))
    return torch.cat(over_y), over_x


def _own(x: Tensor, kernel: Kernel) -> Tensor:
    """Return Σ_j k(x_i, x_j) over j ≠ i, (n,)."""
    return torch.cat([b.sum(dim=1) - b.diagonal(offset=start) for start, b in blocks(x, x, kernel)])
