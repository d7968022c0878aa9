"""A Brownian path for each sample, whose increment is a function of the interval alone.

It is the Wiener process w̄ of the reverse SDE, dx = [f x − g² score] dt + g dw̄, in a clock that all SDEs share. The log
SNR λ obeys dλ = −(g²/σ²) dt on every linear SDE, so that with W a Wiener process in λ

    g dw̄ = σ dW_λ :

in λ the noise enters with σ, which is continuous and bounded where g jumps (a discrete chain's) or grows without bound
(a cosine schedule's near T). A step of size h whose standard normal noise is the increment over [λ_t, λ_s] divided by
its standard deviation misses ∫ σ dW_λ by a variance of order h³, all steps together by an error of order h: schemes of
strong order 1 keep it. One path is the same at equal noise whatever the SDE, its times and the grid. λ has no ends; the
clock proper, c = ½ + atan(λ/10)/π, is a smooth function of it from 0 (no signal) to 1 (no noise).

By Lévy and Ciesielski a path on [0, 1] is a sum of tents: with n = 1, 2, …, and z_{n,k} standard normal,

    W(c) = c z₀ + Σ_n 2^{−(n+1)/2} Λ(2^{n−1} c − k) z_{n,k},   k = ⌊2^{n−1} c⌋,   Λ(v) = 1 − |2v − 1|,

where at each c one tent of a generation is not 0. The normals are functions of (seed, sample, n, k): whoever asks
for an interval, in whatever order and after whatever steps he has taken back, is told the same; increments over [a, b]
and [b, c] add up to that over [a, c]; halving an interval is the Brownian bridge. After ``generations`` the rest of the
series within a cell of 1/2^generations is one tent with the variance of a bridge: exact at every single c, and for
all of which no two share a cell.

References:
    P. Lévy, "Processus stochastiques et mouvement brownien", 1948; Z. Ciesielski, 1961, Bull. Acad. Pol. Sci. 9. As a
    tree of bridges with a number for each node: X. Li et al., 2020, arXiv:2001.01328, Section 4. λ as the clock: D.
    Kingma et al., 2021, arXiv:2107.00630, Section 5. Strong order: P. Kloeden, E. Platen, 1992, Section 10.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.errors import require_int
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.noise import NoiseStream, Words, generators, sample_keys, splitmix64, stream
from sde_diffusion.ops import Number, atan, like, sqrt, widest_float

_AT_A_TIME = 1 << 18  # normals
_STREAM = 0x42726F776E  # what parts the numbers of paths from those of noise streams under the same seed


def clock(level: NoiseLevel) -> Number:
    """Return the clock of paths, c = ½ + atan(λ/10)/π in [0, 1], at a noise level: it runs with the reverse process."""
    return 0.5 + atan(level.log_snr / 10.0) / math.pi


class BrownianPath:
    """A path for each sample; a :data:`~sde_diffusion.types.NoiseFn`.

    ``path(x, t, s)`` is the increment over [c_t, c_s] divided by √(c_s − c_t). Where t and s are the same it is fresh
    noise from a stream of its own, which belongs to no interval: for a corrector, for noise that is added on the way,
    for an area between two increments. Of these the n-th draw is the same in every run, so that runs of different
    numbers of steps see the same path, but not the same fresh noise at the same time.

    An increment costs as much as 2 (generations + 2) draws of a noise stream, half of it where it begins at the end of
    the one before.

    Args:
        seed: any whole number ≥ 0.
        indices: the sample numbers of the batch.
        generations: of tents; intervals of c shorter than 1/2^generations are not resolved: at 18 a change of λ by
            1.2e-4 (1 + λ²/100).

    Raises:
        InputError: on a bad seed or number of generations.
    """

    def __init__(self, seed: int, indices: Sequence[int], generations: int = 18) -> None:
        require_int("generations", generations, 1)
        self._keys = splitmix64(sample_keys(seed, indices), torch.tensor(_STREAM))
        self._fresh = NoiseStream(stream(seed, "noise beside a path"), indices)
        self._generations = generations
        self._words = Words(0, 0, 0, self._keys.device)
        self._last: tuple[NoiseLevel, Tensor] | None = None  # a level, and W there

    def __call__(self, x: Tensor, t: NoiseLevel, s: NoiseLevel) -> Tensor:
        """Return (W(c_s) − W(c_t))/√(c_s − c_t) in the shape, dtype and device of ``x`` (B, *), or fresh noise."""
        if t is s or (not isinstance(t.t, Tensor) and t.t == s.t):
            return self._fresh(x)
        before, after = self._known(t, x), self.at(clock(s), x)
        self._last = s, after
        return (after - before) / like(sqrt(clock(s) - clock(t)), x)

    def _known(self, t: NoiseLevel, x: Tensor) -> Tensor:
        """Return W at level ``t``, which may be what the last interval ended with."""
        if self._last is not None:
            level, value = self._last
            same = level is t or (not isinstance(level.t, Tensor) and not isinstance(t.t, Tensor) and level.t == t.t)
            if same and (value.shape, value.dtype, value.device) == (x.shape, x.dtype, x.device):
                return value
        return self.at(clock(t), x)

    def at(self, c: Number, x: Tensor) -> Tensor:
        """Return W(c) in the shape, dtype and device of ``x`` (B, *), for one c or one of each sample, (B,)."""
        u = torch.as_tensor(c, dtype=widest_float(x.device)).to(x.device).expand(len(x))
        numbers, heights = self._tents(u)
        size = math.prod(x.shape[1:])
        rows = max(1, _AT_A_TIME // (size * len(x)))
        path = x.new_zeros(len(x), size)
        for nodes, height in zip(torch.split(numbers, rows), torch.split(heights, rows), strict=True):
            z = self._normals(nodes, size).to(x.dtype)
            path += z.mul_(height.to(x.dtype)[..., None]).sum(dim=0)
        return path.reshape(x.shape)

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
