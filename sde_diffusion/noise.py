"""Noise that depends on (seed, sample index, draw number) and on nothing else.

A counter-based generator has no state to carry: number j of draw k of sample i under a seed is a function of
(seed, i, k, j). A sample is therefore the same alone, in a batch of 512, on another device or after a restart;
`torch.Generator` needs one generator for each sample to do that, and cannot do it across devices.

Bits: SplitMix64 is a counter passed through a bijective hash of two 64-bit multiplications and three shifts, all of
which torch has on every device. Of the generators tried (Squares, Philox, SplitMix64; `benchmarks/README.md`) it needs
the fewest operations, and no compiler.

Normals: each 16 bits choose one of the 2¹⁶ equally likely cells of N(0, 1), whose means q stand in a table; four of
them are mixed by an orthogonal matrix,

    z = ½ H (q₁, q₂, q₃, q₄)ᵀ,  H = [[1 1 1 1] [1 −1 1 −1] [1 1 −1 −1] [1 −1 −1 1]],

which leaves four uncorrelated normals of variance 1 and smooths the cells away: the distribution function is that of
N(0, 1) to 3e-7, the fourth moment is 3 − 4e-5, P(|z| > 5) is 1.4 % short, and |z| < 8.8. It takes a table look-up and
additions only. It is faster than Box & Muller's logarithm, root, cosine and sine (and than `torch.randn`), and the
normals too are the same bits on every device.

References:
    G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", 2014, OOPSLA, Figures 16 and 17.
    J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011, SC'11.
    C. S. Wallace, "Fast pseudorandom generators for normal and exponential variates", 1996, ACM TOMS 22(1)
    (orthogonal mixing of four normals, there of a pool, here of fresh ones).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.errors import require_int

_GAMMA = 0x9E3779B97F4A7C15
_CELLS = 1 << 16
_AHEAD_DRAWS = 8
_AHEAD_WORDS = 1 << 16


def _signed(value: int) -> int:
    """Read a number modulo 2⁶⁴ as the signed one with the same bits, which is what torch stores."""
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def _splitmix64_(state: Tensor) -> Tensor:
    """Hash the counters in ``state`` (int64) in place; the masks make torch's signed shifts logical."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state.bitwise_xor_((state >> shift).bitwise_and_((1 << 64 - shift) - 1)).mul_(_signed(factor))
    return state.bitwise_xor_((state >> 31).bitwise_and_((1 << 33) - 1))


def _cell_means() -> Tensor:
    """Return half the mean of each of the 2¹⁶ equally likely cells of N(0, 1), scaled to variance ¼; float32."""
    edges = torch.special.ndtri(torch.arange(_CELLS + 1, dtype=torch.float64) / _CELLS)
    density = torch.exp(-0.5 * edges.square()) / math.sqrt(2.0 * math.pi)
    means = density[:-1] - density[1:]  # ∫ z φ(z) dz over a cell
    return (0.5 * means / means.square().mean().sqrt()).to(torch.float32)


_HALF_CELL_MEANS = _cell_means()


def random_bits(key: Tensor, first: int, size: int) -> Tensor:
    """Return outputs ``first`` … ``first + size − 1`` of SplitMix64 for each seed in ``key``.

    Args:
        key: int64, any shape (*).

    Returns:
        int64, shape (*, size); all 64 bits are random.
    """
    steps = torch.arange(1, size + 1, device=key.device).mul_(_signed(_GAMMA))
    return _splitmix64_((key + _signed(first * _GAMMA))[..., None] + steps)


def sample_keys(seed: int, indices: Tensor) -> Tensor:
    """Return the stream key of each sample: output ``indices`` (int64, (B,)) of SplitMix64 under ``seed``."""
    return _splitmix64_(_splitmix64_((indices + 1) * _signed(_GAMMA) + _signed(seed)))


def _sums_and_differences(a: Tensor) -> Tensor:
    """Split the last dimension into halves u, v and return (u + v, u − v)."""
    u, v = a.chunk(2, dim=-1)
    out = torch.empty_like(a)
    torch.add(u, v, out=out[..., : u.shape[-1]])
    torch.sub(u, v, out=out[..., u.shape[-1] :])
    return out


class NoiseStream:
    """Standard normal noise, one independent stream a sample; the default :data:`~sde_diffusion.types.NoiseFn`.

    Every call takes the next numbers of all streams. Calls of one size in a row, as samplers make, are served several
    draws at a time (at most 8, or 1 MiB of them): it costs half as much, and the numbers are the same.

    Args:
        seed: any whole number ≥ 0.
        indices: the sample numbers of the batch, for example ``range(64, 128)`` for the second batch of 64.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        require_int("seed", seed, 0)
        self._keys = sample_keys(seed, torch.as_tensor(indices, dtype=torch.int64))
        self._table = _HALF_CELL_MEANS
        self._used = 0  # outputs taken from every stream
        self._ahead: list[Tensor] = []  # the coming draws, last one first …
        self._ahead_for: tuple[int, torch.device, int] | None = None  # … if the next call is of this kind
        self._draws = 1  # made in one go

    def _move(self, device: torch.device) -> None:
        if self._keys.device != device:
            self._keys, self._table = self._keys.to(device), self._table.to(device)

    def _normals(self, draws: int, words: int) -> Tensor:
        """Return the next ``draws`` draws of 4 · ``words`` normals, float32, shape (draws, B, 4 · words)."""
        later = torch.arange(draws, device=self._keys.device).mul_(_signed(words * _GAMMA))
        bits = random_bits(self._keys + later[:, None], self._used, words)
        cells = bits.view(torch.int16).to(torch.int32).bitwise_and_(_CELLS - 1)
        means = self._table.index_select(0, cells.flatten()).view(cells.shape)
        return _sums_and_differences(_sums_and_differences(means).unflatten(-1, (2, -1))).flatten(-2)

    def __call__(self, x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        """Return the next noise in the shape, dtype and device of ``x`` (B, *); the times do not matter here."""
        self._move(x.device)
        size = math.prod(x.shape[1:])
        words = -(-size // 4)
        in_a_row = self._ahead_for == (size, x.device, self._used)
        if not (in_a_row and self._ahead):
            most = min(_AHEAD_DRAWS, max(1, _AHEAD_WORDS // (words * x.shape[0])))
            self._draws = min(2 * self._draws, most) if in_a_row else 1
            self._ahead = list(self._normals(self._draws, words).unbind())[::-1]
        self._used += words
        self._ahead_for = (size, x.device, self._used)
        return self._ahead.pop()[:, :size].to(x.dtype).reshape(x.shape)

    def uniform(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the next draw as float64 uniforms in (0, 1), shape (B, size): 53 random bits each."""
        self._move(torch.device(device))
        bits = random_bits(self._keys, self._used, size)
        self._used += size
        return (bits >> 11).bitwise_and_((1 << 53) - 1).to(torch.float64).add_(0.5).mul_(2.0**-53)
