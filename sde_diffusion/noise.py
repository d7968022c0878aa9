"""Noise that depends on (seed, sample index, draw number) and on nothing else.

A counter-based generator has no state to carry: element j of draw k of sample i under a seed is a function of
(seed, i, k, j). A sample is therefore the same alone, in a batch of 512, on another device or after a restart;
`torch.Generator` needs one generator for each sample to do that, and cannot do it across devices.

SplitMix64 is a counter passed through a bijective hash of two 64-bit multiplications and three shifts, all of which
torch has on every device: the integer bits are the same everywhere, the normals to rounding. Of the generators tried
(Squares, Philox, SplitMix64; `benchmarks/README.md`) it needs the fewest operations, and no compiler.

References:
    G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", 2014, OOPSLA, Figures 16 and 17.
    J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011, SC'11.
    G. Box, M. Muller, "A Note on the Generation of Random Normal Deviates", 1958, Ann. Math. Stat. 29(2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sde_diffusion.errors import require_int

_GAMMA = 0x9E3779B97F4A7C15
_LOW32 = 0xFFFFFFFF


def _signed(value: int) -> int:
    """Read a number modulo 2⁶⁴ as the signed one with the same bits, which is what torch stores."""
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def _splitmix64_(state: Tensor) -> Tensor:
    """Hash the counters in ``state`` (int64) in place; the masks make torch's signed shifts logical."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state.bitwise_xor_((state >> shift).bitwise_and_((1 << 64 - shift) - 1)).mul_(_signed(factor))
    return state.bitwise_xor_((state >> 31).bitwise_and_((1 << 33) - 1))


def random_bits(key: Tensor, first: int, size: int) -> Tensor:
    """Return outputs ``first`` … ``first + size − 1`` of SplitMix64 for each seed in ``key``.

    Args:
        key: int64, shape (B,).

    Returns:
        int64, shape (B, size); all 64 bits are random.
    """
    steps = torch.arange(1, size + 1, device=key.device).mul_(_signed(_GAMMA))
    return _splitmix64_((key + _signed(first * _GAMMA))[:, None] + steps)


def sample_keys(seed: int, indices: Tensor) -> Tensor:
    """Return the stream key of each sample: output ``indices`` (int64, (B,)) of SplitMix64 under ``seed``."""
    return _splitmix64_(_splitmix64_((indices + 1) * _signed(_GAMMA) + _signed(seed)))


class NoiseStream:
    """Standard normal noise, one independent stream a sample; the default :data:`~sde_diffusion.types.NoiseFn`.

    Every call takes the next numbers of all streams.

    Args:
        seed: any whole number ≥ 0.
        indices: the sample numbers of the batch, for example ``range(64, 128)`` for the second batch of 64.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        require_int("seed", seed, 0)
        self._keys = sample_keys(seed, torch.as_tensor(indices, dtype=torch.int64))
        self._used = 0  # outputs taken from every stream

    def _next_bits(self, size: int, device: torch.device) -> Tensor:
        if self._keys.device != device:
            self._keys = self._keys.to(device)
        bits = random_bits(self._keys, self._used, size)
        self._used += size
        return bits

    def __call__(self, x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        """Return the next noise in the shape, dtype and device of ``x`` (B, *); the times do not matter here."""
        size = math.prod(x.shape[1:])
        bits = self._next_bits((size + 1) // 2, x.device)
        # Box-Muller on two 32-bit halves, each centred in its cell so that 0 < u < 1 and |z| < 6.8.
        radius = (bits >> 32).bitwise_and_(_LOW32).to(torch.float32).mul_(2.0**-32).add_(2.0**-33)
        radius = radius.log_().mul_(-2.0).abs_().sqrt_()
        angle = bits.bitwise_and_(_LOW32).to(torch.float32).mul_(2.0 * math.pi * 2.0**-32)
        z = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=1)
        return z[:, :size].to(x.dtype).reshape(x.shape)

    def uniform(self, size: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the next draw as float64 uniforms in (0, 1), shape (B, size): 53 random bits each."""
        bits = self._next_bits(size, torch.device(device))
        return (bits >> 11).bitwise_and_((1 << 53) - 1).to(torch.float64).add_(0.5).mul_(2.0**-53)
