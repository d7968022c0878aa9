"""Noise that depends on (seed, sample index, position) and on nothing else.

A counter-based generator has no state to carry: number j of sample i under a seed is a function of (seed, i, j). A
sample is therefore the same alone, in a batch of 512, on another device or after a restart; `torch.Generator` needs one
generator for each sample to do that, and cannot do it across devices.

SplitMix64 is a counter passed through a bijective hash of two 64-bit multiplications and three shifts, all of which
torch has on every device: the integer bits are the same everywhere, the normals to rounding. Of the generators tried
(Squares, Philox, SplitMix64) it needs the fewest operations, and no compiler (`benchmarks/README.md`). Normals are the
inverse distribution function of the uniforms, √2 erf⁻¹(u).

References:
    G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", 2014, OOPSLA (mix64variant13).
    J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011, SC'11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.errors import require_int

_AHEAD = 1 << 18
_GAMMA = 0x9E3779B97F4A7C15
_TO_UNIT = 2.0**-31 * (1.0 - 2.0**-24)  # takes 32 signed bits to the open interval, in float32 too


def _signed(value: int) -> int:
    """Read a number modulo 2⁶⁴ as the signed one with the same bits, which is what torch stores."""
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def _hash_(state: Tensor, spare: Tensor) -> Tensor:
    """SplitMix64's hash of the counters in ``state`` (int64), in place; masks make torch's shifts logical."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        torch.bitwise_right_shift(state, shift, out=spare).bitwise_and_((1 << 64 - shift) - 1)
        state.bitwise_xor_(spare)
        if factor != 1:
            state.mul_(_signed(factor))
    return state


class SplitMix64:
    """Outputs of SplitMix64 for many seeds, some draws of ``size`` at a time, in memory that is kept between calls.

    Fresh memory would cost more than the arithmetic done in it.

    Args:
        keys: the seeds, int64, shape (B,).
        size: outputs a draw.
        draws: successive draws a call.
    """

    def __init__(self, keys: Tensor, size: int, draws: int = 1) -> None:
        self.keys, self.size, self.draws = keys, size, draws
        self._steps = torch.arange(1, size + 1, device=keys.device).mul_(_signed(_GAMMA))
        self._starts = keys + torch.arange(draws, device=keys.device).mul_(_signed(size * _GAMMA))[:, None]
        self._bits = torch.empty(draws, len(keys), size, dtype=torch.int64, device=keys.device)
        self._spare = torch.empty_like(self._bits)

    def bits(self, first: int) -> Tensor:
        """Return the outputs of each seed from ``first`` on, int64, (draws, B, size), good until the next call."""
        torch.add((self._starts + _signed(first * _GAMMA))[..., None], self._steps, out=self._bits)
        return _hash_(self._bits, self._spare)


def sample_keys(seed: int, indices: Tensor) -> Tensor:
    """Return the stream key of each sample: SplitMix64's hash of output ``indices`` (int64, (B,)) under ``seed``."""
    keys = (indices + 1) * _signed(_GAMMA) + _signed(seed)
    spare = torch.empty_like(keys)
    return _hash_(_hash_(keys, spare), spare)


class NoiseStream:
    """Standard normal noise, one independent stream a sample; the default :data:`~sde_diffusion.types.NoiseFn`.

    Every call takes the next numbers of all streams. Several small draws are made in one go (up to 2¹⁸ numbers), which
    costs half as much as one by one and changes none of them. What a call returns may be changed in place, and is
    overwritten by a later call: whoever keeps it keeps a copy.

    Args:
        seed: any whole number ≥ 0.
        indices: the sample numbers of the batch, for example ``range(64, 128)`` for the second batch of 64.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        require_int("seed", seed, 0)
        self._keys = sample_keys(seed, torch.as_tensor(indices, dtype=torch.int64))
        self._used = 0  # outputs taken from every stream
        self._generator = SplitMix64(self._keys, 0)
        self._ready = torch.empty(0, 0, 0)  # coming draws, (draws, B, 2 words) …
        self._ready_from = 0  # … that begin at this output

    def _bits(self, size: int, draws: int, device: torch.device) -> Tensor:
        self._keys, made = self._keys.to(device), self._generator
        if (made.size, made.draws, made.keys.device) != (size, draws, device):
            self._generator = SplitMix64(self._keys, size, draws)
        return self._generator.bits(self._used)

    def _prepare(self, words: int, device: torch.device) -> None:
        draws = min(8, max(1, _AHEAD // (2 * words * len(self._keys))))
        halves = self._bits(words, draws, device).view(torch.int32)
        if self._ready.shape != halves.shape or self._ready.device != device:
            self._ready = torch.empty(halves.shape, device=device)
        # Each half of a word is a uniform in (−1, 1), whose float32 has 24 bits, as torch.randn's: |z| ≤ 5.42.
        self._ready.copy_(halves).mul_(_TO_UNIT).erfinv_().mul_(math.sqrt(2.0))
        self._ready_from = self._used

    def __call__(self, x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        """Return the next noise in the shape, dtype and device of ``x`` (B, *); the times do not matter here."""
        size = math.prod(x.shape[1:])
        words = (size + 1) // 2
        draw, rest = divmod(self._used - self._ready_from, words)
        fits = self._ready.shape[2] == 2 * words and self._ready.device == x.device and rest == 0
        if not (fits and draw < self._ready.shape[0]):
            self._prepare(words, x.device)
            draw = 0
        self._used += words
        z = self._ready[draw]
        return (z if size == 2 * words else z[:, :size]).to(x.dtype).reshape(x.shape)

    def uniform(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the next numbers as float64 uniforms in (0, 1), shape (B, size): 53 random bits each."""
        bits = self._bits(size, 1, torch.device(device))[0] >> 11
        self._used += size
        return bits.bitwise_and_((1 << 53) - 1).to(torch.float64).add_(0.5).mul_(2.0**-53)
