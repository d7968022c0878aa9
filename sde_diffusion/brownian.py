"""A Brownian path for each sample, whose increment is a function of the interval alone.

By Lévy and Ciesielski a path on [0, T] is a sum of tents: with u = t/T, n = 1, 2, …, and z_{n,k} standard normal,

    W(t)/√T = u z₀ + Σ_n 2^{−(n+1)/2} Λ(2^{n−1} u − k) z_{n,k},   k = ⌊2^{n−1} u⌋,   Λ(v) = 1 − |2v − 1|,

where at each time one tent of a generation is not 0. The normals are functions of (seed, sample, n, k): whoever asks
for an interval, in whatever order and after whatever steps he has taken back, is told the same; increments over [a, b]
and [b, c] add up to that over [a, c]; halving an interval is the Brownian bridge. After ``generations`` the rest of the
series within a cell of T/2^generations is one tent with the variance of a bridge: exact at every single time, and for
all times of which no two share a cell.

References:
    P. Lévy, "Processus stochastiques et mouvement brownien", 1948; Z. Ciesielski, 1961, Bull. Acad. Pol. Sci. 9. As a
    tree of bridges with a number for each node: X. Li et al., 2020, arXiv:2001.01328, Section 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.errors import require_float, require_int
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.noise import NoiseStream, Words, generators, sample_keys, splitmix64, stream
from sde_diffusion.ops import Number, like, sqrt, widest_float

_AT_A_TIME = 1 << 18  # normals
_STREAM = 0x42726F776E  # what parts the numbers of paths from those of noise streams under the same seed


class BrownianPath:
    """A path in t for each sample; a :data:`~sde_diffusion.types.NoiseFn`.

    ``path(x, t, s)`` is the increment over [s, t] divided by √(t − s). Where t and s are the same it is fresh noise
    from a stream of its own, which belongs to no interval: for a start, a corrector, an area between two increments.

    An increment costs as much as 2 (generations + 2) draws of a noise stream, half of it where it begins at the end of
    the one before.

    Args:
        seed: any whole number ≥ 0.
        indices: the sample numbers of the batch.
        T: the last time; an SDE's.
        generations: of tents; intervals shorter than T/2^generations are not resolved.

    Raises:
        InputError: on a bad seed, T or number of generations.
    """

    def __init__(self, seed: int, indices: Sequence[int], T: float = 1.0, generations: int = 18) -> None:
        require_float("T", T, 0.0, open_low=True)
        require_int("generations", generations, 1)
        self._keys = splitmix64(sample_keys(seed, indices), torch.tensor(_STREAM))
        self._fresh = NoiseStream(stream(seed, "noise beside a path"), indices)
        self._T, self._generations = T, generations
        self._words = Words(0, 0, 0, self._keys.device)
        self._last: tuple[Number, Tensor] | None = None  # a time, and W there

    def __call__(self, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
        """Return (W(t) − W(s))/√(t − s) in the shape, dtype and device of ``x`` (B, *), or fresh noise if t is s."""
        if t is s or (not isinstance(t.t, Tensor) and t.t == s.t):
            return self._fresh(x)
        before, after = self._known(t.t, x), self.at(s.t, x)
        self._last = s.t, after
        return (before - after) / like(sqrt(t.t - s.t), x)

    def _known(self, t: Number, x: Tensor) -> Tensor:
        """Return W(t), which may be what the last interval ended with."""
        if self._last is not None:
            time, value = self._last
            same = time is t or (not isinstance(time, Tensor) and not isinstance(t, Tensor) and time == t)
            if same and (value.shape, value.dtype, value.device) == (x.shape, x.dtype, x.device):
                return value
        return self.at(t, x)

    def at(self, t: Number, x: Tensor) -> Tensor:
        """Return W(t) in the shape, dtype and device of ``x`` (B, *), for a time or one of each sample, (B,)."""
        u = (torch.as_tensor(t, dtype=widest_float(x.device)) / self._T).to(x.device).expand(len(x))
        numbers, heights = self._tents(u)
        size = math.prod(x.shape[1:])
        rows = max(1, _AT_A_TIME // (size * len(x)))
        path = x.new_zeros(len(x), size)
        for nodes, height in zip(torch.split(numbers, rows), torch.split(heights, rows), strict=True):
            z = self._normals(nodes, size).to(x.dtype)
            path += z.mul_(height.to(x.dtype)[..., None]).sum(dim=0)
        return math.sqrt(self._T) * path.reshape(x.shape)

    def _tents(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return number and height of the tents that are not 0 at ``u`` (B,), both (generations + 2, B)."""
        n = torch.arange(self._generations + 1, device=u.device)[:, None]
        cells = 2.0 ** n.to(u)
        k = torch.minimum((u * cells).floor(), cells - 1.0)  # tent k of generation n has the number 2ⁿ + k
        v = u * cells - k
        heights = 0.5 * cells.rsqrt() * (1.0 - (2.0 * v - 1.0).abs())
        # The last one stands for itself and all below it: a bridge, √(v (1 − v)) at v.
        heights[-1] = (v[-1] * (1.0 - v[-1])).clamp_min(0.0).sqrt() * cells[-1].rsqrt()
        numbers = (cells + k).long()
        return torch.cat([torch.zeros_like(numbers[:1]), numbers]), torch.cat([u[None], heights])

    def _normals(self, nodes: Tensor, size: int) -> Tensor:
        """Return the normals of nodes (D, B), float32, (D, B, size), good until the next call."""
        self._keys = self._keys.to(nodes.device)
        if not self._words.fits(len(nodes), size, nodes.device):
            self._words = Words(len(nodes), nodes.shape[1], size, nodes.device)
        return self._words.deviates(generators(self._keys, nodes)).mul_(math.sqrt(2.0))
