"""Ground truth 15 at its root: numbers of a stream depend on seed, sample index and position alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

import samplers
import sde_diffusion as sd
from sde_diffusion.commands.main import main
from sde_diffusion.noise import _MIX32, Words, _hash_, generators, sample_keys, splitmix64, stream


def test_known_answers() -> None:
    """The first outputs of SplitMix64 for seed 1234567, and MurmurHash3 of nothing for three seeds, as published."""
    bits = splitmix64(torch.tensor(1234567), torch.arange(3))
    assert [b % 2**64 for b in bits.tolist()] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = torch.tensor([0, 1, -1], dtype=torch.int32)
    found = [b % 2**32 for b in _hash_(states, torch.empty_like(states), _MIX32).tolist()]
    assert [b ^ b >> 16 for b in found] == [0, 0x514E28B7, 0x81F16F39]


def test_words_follow_their_definition() -> None:
    """Word j of draw d is the hash of start + j · increment, the halves of SplitMix64's output d (in Python's ints)."""
    keys, mask = torch.tensor([5, -7]), 2**32 - 1
    words = Words(3, 2, 4, keys.device)(generators(keys, torch.tensor([6, 7, 8])))
    for d in range(3):
        for i, both in enumerate(splitmix64(keys, torch.tensor(6 + d)).tolist()):
            start, increment = both & mask, (both >> 32 & mask) | 1
            for j in range(4):
                h = start + j * increment & mask
                for shift, factor in _MIX32:
                    h = (h ^ h >> shift) * factor & mask
                assert int(words[d, i, j]) & mask == h


def test_every_bit_of_a_word_depends_on_every_bit_of_its_counter() -> None:
    """Flipping a bit of the counter flips each of the upper 24 bits of the word half of the time."""
    counters, _ = torch.randint(-(2**31), 2**31, (2, 4096), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    rates = []
    for bit in range(32):
        flipped = counters ^ torch.tensor(1 << bit).to(torch.int32)
        hashed = [_hash_(c.clone(), torch.empty_like(c), _MIX32) for c in (counters, flipped)]
        changed = hashed[0] ^ hashed[1]
        rates += [float((changed >> k & 1).double().mean()) for k in range(8, 32)]
    assert max(abs(rate - 0.5) for rate in rates) < 5 * 0.5 / math.sqrt(4096)


@pytest.mark.parametrize("shape", [(3,), (1, 5, 5), (2, 4, 4)])
def test_independent_of_the_batch(shape: tuple[int, ...]) -> None:
    whole = sd.NoiseStream(7, range(64))
    alone, seven = sd.NoiseStream(7, [41]), sd.NoiseStream(7, range(38, 45))
    for _ in range(3):
        z = whole(torch.empty(64, *shape))
        assert torch.equal(alone(torch.empty(1, *shape))[0], z[41])
        assert torch.equal(seven(torch.empty(7, *shape)), z[38:45])


def test_generators_do_not_know_each_other() -> None:
    """χ² of pairs of bytes between positions, samples and draws; no line stands out of any draw's spectrum."""
    keys = splitmix64(torch.tensor(0), torch.arange(64))
    words = Words(64, 64, 1024, keys.device)(generators(keys, torch.arange(64)))
    byte = words >> 24 & 255
    for a, b in ((byte[..., :-1], byte[..., 1:]), (byte[:, :-1], byte[:, 1:]), (byte[:-1], byte[1:])):
        counts = torch.bincount((256 * a + b).flatten(), minlength=1 << 16).double()
        statistic = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
        assert stats.chi2.sf(statistic, len(counts) - 1) > 1e-4
    power = torch.fft.rfft(words.double() / 2**31)[..., 1:-1].abs().square() / (1024 / 3)  # exponential, mean 1
    largest = (1.0 - torch.exp(-power.amax(dim=-1))) ** power.shape[-1]
    assert stats.kstest(largest.flatten().numpy(), "uniform").pvalue > 1e-4


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


def test_uniforms() -> None:
    """Kolmogorov-Smirnov over 10⁵ numbers with 53 bits, other ones in the next draw and in the normals'."""
    stream = sd.NoiseStream(3, range(100))
    u, other, z = stream.uniform(1000), stream.uniform(1000), stream(torch.empty(100, 2000))
    assert u.dtype == torch.float64
    assert ((u > 0) & (u < 1)).all()
    assert (u * 2.0**53 - 0.5 == (u * 2.0**53 - 0.5).round()).all()
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-4
    pairs = torch.stack([u.flatten(), other.flatten(), z[:, ::2].flatten().double(), z[:, 1::2].flatten().double()])
    assert (torch.corrcoef(pairs) - torch.eye(4)).abs().max() < 5 / math.sqrt(1e5)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(sd.InputError, match="seed="):
        sd.NoiseStream(seed, range(2))  # type: ignore[arg-type]


PURPOSES = [
    "training", "weights", "probes", "truncation", "noise beside a path", "continuous bound", "discrete bound",
    "pairs", "halves of samples", "halves of data", "halves of both sets", "directions", "permutations", "thinning",
    "KID", "Inception score", "sets of one size",
    *(f"dequantisation {i}" for i in range(4)), *(f"likelihood of dequantisation {i}" for i in range(4)),
    *(f"dropout of step {i}" for i in range(50)), *(f"order of epoch {i}" for i in range(50)),
]  # fmt: skip


def test_no_two_consumers_of_randomness_share_a_stream() -> None:
    """All pairs of (purpose, seed, sample, draw) give different words, of neighbouring seeds and samples too.

    The words are start and increment of one draw, 63 random bits: of n = 3 million two agree by chance with
    probability n²/2⁶⁴ = 5e-7.
    """
    seeds = [0, 1, 2, 3, 20240101120000, (1 << 63) - 1]
    derived = {(seed, purpose): stream(seed, purpose) for seed in seeds for purpose in PURPOSES}
    assert len({*derived.values(), *seeds}) == len(derived) + len(seeds)
    words = []
    for root in [*seeds, *derived.values()]:
        keys = sample_keys(root, range(256))
        words.append(generators(keys, torch.arange(16)).contiguous().view(torch.int64).flatten())
    found = torch.cat(words)
    assert len(found) == (len(derived) + len(seeds)) * 256 * 16
    assert len(torch.unique(found)) == len(found)


def test_every_consumer_names_its_stream() -> None:
    """No library code seeds a generator, or draws noise, with a person's seed but the samplers."""
    root = Path(__file__).parents[1]
    for path in [*root.glob("sde_diffusion/**/*.py"), *root.glob("samplers/*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "NoiseStream(" in line and "class " not in line and "->" not in line and path.name != "base.py":
                assert "stream(" in line, f"{path}: {line}"
            if "manual_seed(" in line and path.name != "diffusers_folder.py":
                assert "stream(" in line, f"{path}: {line}"


def test_probes_do_not_know_the_samples() -> None:
    """Draw, then score what was drawn, both with their defaults: E[eᵀ J e] is the trace, whatever the samples.

    With probes that were the signs of the samples' own start noise, the mean was off by +0.32 nats on this mixture.
    """
    law = sd.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [[[0.04, 0.03], [0.03, 0.04]]] * 2)
    denoiser = law.denoiser(sd.VPSDE())
    x = samplers.build("heun", num_steps=30).draw(denoiser, (1500, 2), seed=0).x
    options: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4, "check": 0}
    probed, exact = (sd.log_likelihood(denoiser, x, divergence=d, **options).log_prob for d in ("hutchinson", "exact"))
    gap = probed - exact
    assert abs(float(gap.mean())) < 4.0 * float(gap.std()) / math.sqrt(len(gap))


@pytest.mark.parametrize("seed", [20240101120000, (1 << 63) - 1])
def test_any_seed_below_the_largest(seed: int, tmp_path: Path) -> None:
    small = ["--config.network.unet.channels=8", "--config.training.num_steps=2", "--config.training.batch_size=4"]
    about = [f"--workdir={tmp_path}", f"--seed={seed}", "--quiet", "--device=cpu"]
    assert main(["train", *about, *small]) == 0
    assert main(["sample", *about, "--steps=2", "--num_samples=2"]) == 0
    few = ["--num_samples=2", "--bound_draws=2", "--bound_steps=2", "--tolerance=0.5", "--dequantisations=2"]
    assert main(["likelihood", *about, *few]) == 0


def test_a_seed_that_is_none_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for bad in (1 << 63, -1):
        for command in ("train", "sample", "likelihood"):
            assert main([command, f"--workdir={tmp_path / 'run'}", f"--seed={bad}"]) == 2
            [line] = capsys.readouterr().err.splitlines()
            assert f"seed={bad}: expected a whole number from 0 to 9223372036854775807" in line
    with pytest.raises(sd.InputError, match="seed=True"):
        sd.NoiseStream(True, range(2))
