"""Noise that depends on (seed, sample index, draw, position) and on nothing else.

A counter-based generator has no state to carry: number j of draw d of sample i under a seed is a function of
(seed, i, d, j). A sample is therefore the same alone, in a batch of 512, on another device or after a restart;
`torch.Generator` needs one generator for each sample to do that, and cannot do it across devices.

Each draw of each sample is a SplitMix generator of 32-bit words with a start and an odd increment of its own, both
from SplitMix64: word j is a bijective hash of start + j · increment. Hashes are multiplications and shifts, which torch
has on every device: the integer bits are the same everywhere, the normals to rounding. Of the generators tried
(Squares, Philox, SplitMix64 throughout) this needs the least time, and no compiler (`benchmarks/README.md`). Normals
are the inverse distribution function of the uniforms, √2 erf⁻¹(u).

References:
    G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", 2014, OOPSLA (SplitMix; mix32 is the
    finaliser of A. Appleby's MurmurHash3, mix64variant13 that of SplitMix64).
    J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011, SC'11.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.errors import require
from sde_diffusion.levels import NoiseLevel
from sde_diffusion.ops import widest_float

_AHEAD = 1 << 18
_GAMMA = 0x9E3779B97F4A7C15
_TO_UNIT = 2.0**-31 * (1.0 - 2.0**-24)  # takes 32 signed bits to the open interval, in float32 too
_MIX64 = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
_MIX32 = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))
"""MurmurHash3's finaliser without its last shift, which only changes bits that a float32 does not hold."""


def _signed(value: int, bits: int = 64) -> int:
    """Read a number modulo 2^bits as the signed one with the same bits, which is what torch stores."""
    return ((value + (1 << bits - 1)) & ((1 << bits) - 1)) - (1 << bits - 1)


def _hash_(state: Tensor, spare: Tensor, rounds: Sequence[tuple[int, int]]) -> Tensor:
    """Hash the integers in ``state``, in place; masks make torch's shifts logical.

    Args:
        rounds: each a shift whose result is combined by exclusive or, and an odd factor.
    """
    bits = 8 * state.element_size()
    for shift, factor in rounds:
        torch.bitwise_right_shift(state, shift, out=spare).bitwise_and_((1 << bits - shift) - 1)
        state.bitwise_xor_(spare)
        if factor != 1:
            state.mul_(_signed(factor, bits))
    return state


def splitmix64(seeds: Tensor, positions: Tensor) -> Tensor:
    """Return outputs number ``positions``, counted from 0, of SplitMix64 with ``seeds``: int64 tensors, broadcast."""
    state = seeds + (positions + 1) * _signed(_GAMMA)
    return _hash_(state, torch.empty_like(state), _MIX64)


def require_seed(seed: object) -> None:
    """Require a seed.

    Raises:
        InputError: unless it is a whole number from 0 to 2⁶³ − 1.
    """
    ok = isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 1 << 63
    require(ok, "seed", seed, f"a whole number from 0 to {(1 << 63) - 1}, which is 2^63 - 1")


def stream(seed: int, purpose: str) -> int:
    """Return the seed of a purpose under a seed, a whole number below 2⁶³.

    Every consumer of randomness has a purpose of its own, probes, dequantisation, the order of the data …, so that no
    two share a stream, nor do those of neighbouring seeds. Sampling, the start and the steps, takes the seed itself.

    Args:
        seed: a whole number from 0 to 2⁶³ − 1.
        purpose: what the randomness is for, in words.

    Raises:
        InputError: on a seed that is none.
    """
    require_seed(seed)
    digest = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str) -> torch.Generator:
    """Return a generator of torch for a purpose under a seed, on the CPU."""
    return torch.Generator().manual_seed(stream(seed, purpose))


def sample_keys(seed: int, indices: Sequence[int]) -> Tensor:
    """Return the key of each sample under a seed, int64, (B,).

    Raises:
        InputError: unless the seed is a whole number from 0 to 2⁶³ − 1.
    """
    require_seed(seed)
    return splitmix64(torch.tensor(_signed(seed)), torch.as_tensor(indices, dtype=torch.int64))


def generators(keys: Tensor, draws: Tensor) -> Tensor:
    """Return start and increment of the generator of each draw of each sample: int32, (D, B, 2).

    Args:
        keys: one a sample, int64, (B,).
        draws: their numbers, int64, (D,), or (D, B) where each sample has its own.
    """
    both = splitmix64(keys, draws if draws.ndim == 2 else draws[:, None])[..., None].view(torch.int32)
    both[..., 1].bitwise_or_(1)
    return both


class Words:
    """Words of some draws of many samples at a time, in memory that is kept between calls.

    Fresh memory would cost more than the arithmetic done in it.

    Args:
        draws, batch, size: the shape of what a call returns.
        device: where it is computed.
    """

    def __init__(self, draws: int, batch: int, size: int, device: torch.device) -> None:
        self._positions = torch.arange(size, dtype=torch.int32, device=device)
        self._words = torch.empty(draws, batch, size, dtype=torch.int32, device=device)
        self._spare = torch.empty(draws, batch, size, device=device)

    def fits(self, draws: int, size: int, device: torch.device) -> bool:
        """Return whether this is what makes ``draws`` draws of ``size`` words on ``device``."""
        return (draws, size, device) == (len(self._words), len(self._positions), self._words.device)

    def __call__(self, generators: Tensor) -> Tensor:
        """Return the first words of generators, (draws, B, 2): int32, (draws, B, size), good until the next call."""
        torch.mul(self._positions, generators[..., 1:], out=self._words).add_(generators[..., :1])
        return _hash_(self._words, self._spare.view(torch.int32), _MIX32)

    def deviates(self, generators: Tensor) -> Tensor:
        """Return erf⁻¹ of the words as uniforms, which is normal/√2: float32, else as a call's, in other memory."""
        # A word is a uniform in (−1, 1), whose float32 has 24 bits, as torch.randn's: |z| ≤ 5.42.
        return self._spare.copy_(self(generators)).mul_(_TO_UNIT).erfinv_()


class NoiseStream:
    """Standard normal noise, one independent stream a sample; the default :data:`~sde_diffusion.types.NoiseFn`.

    Every call takes the next draw of all streams. Several small draws are made in one go (up to 2¹⁸ numbers), which
    costs half as much as one by one and changes none of them. What a call returns is its caller's to keep.

    Args:
        seed: a whole number from 0 to 2⁶³ − 1; that of a purpose by :func:`stream`.
        indices: the sample numbers of the batch, for example ``range(64, 128)`` for the second batch of 64.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self._keys = sample_keys(seed, indices)
        self._draw = 0  # the next one
        self._generators = torch.empty(0, 0, 2)  # of coming draws, (draws, B, 2) …
        self._generators_from = 0  # … the first of which is this one
        self._words = Words(0, 0, 0, self._keys.device)
        self._ready: tuple[Tensor, ...] = (torch.empty(0),)  # normals/√2 of coming draws, in the shape asked for …
        self._ready_from = 0  # … the first of which is this one

    def _next(self, size: int, draws: int, device: torch.device) -> tuple[Words, Tensor]:
        """Return what makes the words of the next draws, and their generators."""
        made, first = self._generators, self._draw - self._generators_from
        if made.device != device or first + draws > len(made):
            self._keys = self._keys.to(device)
            ahead = max(draws, min(64, _AHEAD // (8 * len(self._keys))))
            numbers = torch.arange(self._draw, self._draw + ahead, device=device)
            made, first = generators(self._keys, numbers), 0
            self._generators, self._generators_from = made, self._draw
        if not self._words.fits(draws, size, device):
            self._words = Words(draws, len(self._keys), size, device)
        return self._words, made[first : first + draws]

    def _prepare(self, x: Tensor) -> None:
        size = math.prod(x.shape[1:])
        words, made = self._next(size, min(8, max(1, _AHEAD // (size * len(self._keys)))), x.device)
        self._ready, self._ready_from = words.deviates(made).view(-1, *x.shape).unbind(), self._draw

    def __call__(self, x: Tensor, t: NoiseLevel | None = None, s: NoiseLevel | None = None) -> Tensor:
        """Return the next noise in the shape, dtype and device of ``x`` (B, *); the levels do not matter here."""
        draw, z = self._draw - self._ready_from, self._ready[0]
        if draw >= len(self._ready) or z.shape != x.shape or z.device != x.device:
            self._prepare(x)
            draw = 0
        self._draw += 1
        return torch.mul(self._ready[draw], math.sqrt(2.0)).to(x.dtype)  # in memory of its own

    def uniform(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the next draw as uniforms in (0, 1), (B, size): float64 of 53 random bits each, or float32 of 23.

        Which of the two is the device's (:func:`~sde_diffusion.ops.widest_float`).
        """
        words, made = self._next(2 * size, 1, torch.device(device))
        dtype = widest_float(made.device)
        digits = 53 if dtype == torch.float64 else 23  # a float32 holds as many and the half: none is rounded to 1
        bits = words(made)[0].view(torch.int64) >> (64 - digits)
        self._draw += 1
        return bits.bitwise_and_((1 << digits) - 1).to(dtype).add_(0.5).mul_(2.0**-digits)
