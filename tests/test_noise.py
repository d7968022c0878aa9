"""Ground truth 15 at its root: numbers of a stream depend on seed, sample index and position alone."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

import sde_diffusion as sd
from sde_diffusion.noise import SplitMix64


def test_known_answers() -> None:
    """The first outputs of SplitMix64 for seed 1234567, as published with the reference implementation."""
    bits = SplitMix64(torch.tensor([1234567]), 3).bits(0)[0, 0]
    assert [b % 2**64 for b in bits.tolist()] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert torch.equal(SplitMix64(torch.tensor([1234567]), 2).bits(1)[0, 0], bits[1:])


@pytest.mark.parametrize("shape", [(3,), (1, 5, 5), (2, 4, 4)])
def test_independent_of_the_batch(shape: tuple[int, ...]) -> None:
    whole = sd.NoiseStream(7, range(64))
    alone, seven = sd.NoiseStream(7, [41]), sd.NoiseStream(7, range(38, 45))
    for _ in range(3):
        z = whole(torch.empty(64, *shape))
        assert torch.equal(alone(torch.empty(1, *shape))[0], z[41])
        assert torch.equal(seven(torch.empty(7, *shape)), z[38:45])


def test_draws_made_ahead_are_those_made_one_by_one() -> None:
    """A batch so large that nothing is made ahead and a small one give the same numbers, call by call."""
    small, large = sd.NoiseStream(3, range(2)), sd.NoiseStream(3, range(5000))
    for shape in ((7, 9), (7, 9), (7, 9), (4,), (4,), (7, 9)):
        assert torch.equal(small(torch.empty(2, *shape)), large(torch.empty(5000, *shape))[:2])
    assert torch.equal(small.uniform(3), large.uniform(3)[:2])
    assert torch.equal(small(torch.empty(2, 4)), large(torch.empty(5000, 4))[:2])


def test_draws_seeds_and_samples_differ() -> None:
    x = torch.empty(2, 1000)
    stream = sd.NoiseStream(0, range(2))
    first, second, other = stream(x).clone(), stream(x), sd.NoiseStream(1, range(2))(x)
    flat = torch.cat([first, second, other])
    off_diagonal = torch.corrcoef(flat) - torch.eye(6)
    assert off_diagonal.abs().max() < 5 / math.sqrt(1000)


def test_normality() -> None:
    """Kolmogorov-Smirnov over 10⁶ numbers; tails and fourth moment within 5 standard errors."""
    z = sd.NoiseStream(5, range(100))(torch.empty(100, 10_000)).double().flatten()
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-4
    assert abs(float((z**4).mean()) - 3) < 5 * math.sqrt(96 / 1e6)
    expected = 2e6 * stats.norm.sf(4.0)
    assert abs(int((z.abs() > 4).sum()) - expected) < 5 * math.sqrt(expected)


def test_mixed_draws_never_share_numbers() -> None:
    """Draws of different sizes from one stream use successive numbers."""
    a, b = sd.NoiseStream(3, [0]), sd.NoiseStream(3, [0])
    joined = a.uniform(10)
    split = torch.cat([b.uniform(3), b.uniform(7)], dim=1)
    assert torch.equal(joined, split)
    assert ((joined > 0) & (joined < 1)).all()


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(sd.InputError, match="seed="):
        sd.NoiseStream(seed, range(2))  # type: ignore[arg-type]
