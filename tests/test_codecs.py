"""The ways between data and model space: there and back to rounding, and what they do to a density."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sde_diffusion as sd
from sde_diffusion.codecs import (
    CODECS,
    Codec,
    GreyLevels,
    Identity,
    Standardised,
    codec_for,
    describe_codec,
    stored_codec,
)
from sde_diffusion.codecs.grey_levels import to_uint8
from sde_diffusion.data import Dataset
from sde_diffusion.errors import InputError
from sde_diffusion.noise import NoiseStream
from sde_diffusion.records import read_record, write_record

STD = (0.1, 1.0, 5.0, 20.0, 50.0)
MEAN = (-3.0, 0.0, 4.0, 30.0, 100.0)


def vectors(n: int = 4000, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, 5, generator=generator, dtype=torch.float64)
    return (z * torch.tensor(STD) + torch.tensor(MEAN)).to(dtype)


def dataset(x: torch.Tensor, **more: object) -> Dataset:
    levels = 17 if x.dtype == torch.uint8 else None
    return Dataset("mine", x[: len(x) // 2], x[len(x) // 2 :], levels, **more)  # type: ignore[arg-type]


def test_standardised_data_have_zero_mean_and_unit_variance() -> None:
    data = dataset(vectors())
    codec = codec_for(data)
    assert isinstance(codec, Standardised)
    z, _ = codec.encode(data.train)
    assert z.dtype == torch.float32
    # float32 near 100 with a deviation of 0.1 … 50: rounding of the data themselves, 100 · 2⁻²⁴, and of the sums.
    torch.testing.assert_close(z.double().mean(dim=0), torch.zeros(5, dtype=torch.float64), atol=1e-5, rtol=0.0)
    deviation = z.double().std(dim=0, correction=0)
    torch.testing.assert_close(deviation, torch.ones(5, dtype=torch.float64), atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("shape", [(5,), (2, 64), (1, 8, 8, 8), (3, 8, 8)])
def test_there_and_back_to_rounding(shape: tuple[int, ...]) -> None:
    x = 100.0 + 7.0 * torch.randn(200, *shape, generator=torch.Generator().manual_seed(1))
    for codec in (codec_for(dataset(x)), Identity()):
        z, weight = codec.encode(x)
        assert z.shape == x.shape
        assert weight.shape == (200,)
        torch.testing.assert_close(codec.decode(z), x, rtol=4.0 * 2.0**-24, atol=1e-5)
        assert torch.equal(codec.encode(codec.decode(z))[1], weight)


def test_statistics_are_of_the_training_split_alone() -> None:
    x = vectors()
    data = dataset(x)
    assert codec_for(data) == codec_for(replace(data, test=data.test * 10.0 + 5.0))
    assert codec_for(data) != codec_for(replace(data, train=data.train * 10.0))


def test_channels_of_series_are_standardised_each_by_its_own() -> None:
    x = torch.randn(500, 2, 64, generator=torch.Generator().manual_seed(2)) * torch.tensor([[1.0], [30.0]]) + 7.0
    codec = codec_for(dataset(x))
    assert isinstance(codec, Standardised)
    assert len(codec.mean) == len(codec.std) == 2
    _, weight = codec.encode(x)
    want = -64.0 * sum(map(math.log, codec.std))
    torch.testing.assert_close(weight, torch.full((500,), want, dtype=torch.float64))


def test_the_log_weight_is_the_change_of_variables() -> None:
    """log p(x) = log p(z) + log |det ∂z/∂x|, with the determinant by autograd."""
    x = vectors(40)
    codec = codec_for(dataset(x))
    row = x[:1].double().requires_grad_()

    def encode(flat: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (codec.mean, codec.std))  # type: ignore[attr-defined]
        return (flat - mean) / std

    torch.testing.assert_close(encode(row).float(), codec.encode(row)[0])  # the codec's own map is differentiated
    jacobian = torch.autograd.functional.jacobian(encode, row[0])
    assert float(codec.encode(x[:1])[1]) == pytest.approx(float(torch.linalg.slogdet(jacobian)[1]), rel=1e-12)


def test_log_p_of_standardised_data_is_the_closed_form() -> None:
    """The ODE's log p of z plus the log-weight, against the law of x itself in its own units."""
    std, mean = torch.tensor(STD, dtype=torch.float64), torch.tensor(MEAN, dtype=torch.float64)
    correlation = 0.6 ** (torch.arange(5)[:, None] - torch.arange(5)).abs().double()
    covariance = std[:, None] * correlation * std
    law = sd.Gaussian(mean, covariance)
    x = law.sample(400, generator=torch.Generator().manual_seed(3)).float()
    codec = codec_for(dataset(x))
    assert isinstance(codec, Standardised)
    scale = torch.tensor(codec.std, dtype=torch.float64)
    law_z = sd.Gaussian((mean - torch.tensor(codec.mean)) / scale, covariance / scale[:, None] / scale)
    z, weight = codec.encode(x[:32])
    sde = sd.VPSDE()
    r = sd.log_likelihood(law_z.denoiser(sde), z.double(), divergence="exact", rtol=1e-8, atol=1e-8, check=0)
    # What is left is the prior's mismatch, whose log-ratio has a standard deviation of about √(2 KL), and the
    # truncation at t = 1e-5, of variance 1e-6 beside the smallest variance of z in any direction, 0.1.
    spread = math.sqrt(2.0 * float(law_z.prior_kl(sde)))
    torch.testing.assert_close(r.log_prob + weight, law.log_prob(x[:32].double()), atol=5.0 * spread + 1e-4, rtol=0.0)


@pytest.mark.parametrize("codec", [GreyLevels(17), Standardised((0.0, 1.0), (1.0, 2.0))], ids=["grey", "standardised"])
def test_no_example_at_all(codec: Codec) -> None:
    """An empty batch has its shape, and no log-weight."""
    x = torch.zeros(0, 2, 3, dtype=torch.uint8 if isinstance(codec, GreyLevels) else torch.float32)
    z, weight = codec.encode(x)
    assert (z.shape, weight.shape) == (x.shape, (0,))
    assert codec.decode(z).shape == x.shape


def test_grey_levels_keep_what_there_was() -> None:
    k = torch.arange(17, dtype=torch.uint8).reshape(1, 1, 1, 17).repeat(3, 1, 1, 1)
    codec = GreyLevels(17)
    points, weight = codec.encode(k)
    assert float(points.min()) == -1.0
    assert float(points.max()) == 1.0
    assert torch.equal(codec.decode(points), k)
    spread, _ = codec.encode(k, NoiseStream(0, range(3)))
    assert not torch.equal(spread, points)
    assert float((spread - points).abs().max()) <= 0.5 * codec.cell + 1e-6
    assert torch.equal(codec.decode(spread), k)
    torch.testing.assert_close(weight, torch.full((3,), 17 * math.log(2.0 / 16.0), dtype=torch.float64))
    bare = GreyLevels(17, dequantise=False)
    assert torch.equal(bare.encode(k, NoiseStream(0, range(3)))[0], points)
    assert bare.density == codec


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_uniform_levels_cost_their_number_in_bits(levels: int) -> None:
    """A density that is uniform over all cells gives each level the probability 1/L: log P = log p + D log cell."""
    codec = GreyLevels(levels)
    _, weight = codec.encode(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    log_density = -12.0 * math.log(levels * codec.cell)
    assert float(log_density + weight[0]) == pytest.approx(-12.0 * math.log(levels), rel=1e-12)


def test_pictures_span_eight_bits_for_any_number_of_levels() -> None:
    for levels in (2, 17, 256):
        k = torch.arange(levels, dtype=torch.uint8)
        picture = to_uint8(k, levels)
        assert picture[0] == 0
        assert picture[-1] == 255
        assert bool((picture.int().diff() > 0).all())


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_mass_of_a_cell_bounds_the_probability_of_its_level(levels: int) -> None:
    """log P(k) ≥ E_u log p(z) + log cell for a density with a slope, with the integral over the cell in closed form."""
    codec = GreyLevels(levels)
    k = torch.full((20000, 1, 1, 1), levels // 2, dtype=torch.uint8)
    z, weight = codec.encode(k, NoiseStream(0, range(len(k))))
    law = torch.distributions.Normal(0.3, 0.2)
    bound = float((law.log_prob(z.double()).flatten() + weight).mean())
    middle = float(codec.encode(k[:1])[0])
    ends = (law.cdf(torch.tensor(middle + s * 0.5 * codec.cell, dtype=torch.float64)) for s in (1.0, -1.0))
    exact = math.log(float(next(ends)) - float(next(ends)))
    assert bound <= exact + 1e-9 + 5.0 * float(law.log_prob(z.double()).std()) / math.sqrt(len(k))


def test_stored_and_made_again(tmp_path: Path) -> None:
    for codec in (codec_for(dataset(vectors())), GreyLevels(17, dequantise=False), Identity()):
        write_record(tmp_path / "codec.json", {"codec": describe_codec(codec)})
        assert stored_codec(read_record(tmp_path / "codec.json")["codec"]) == codec  # to the last bit, through JSON


def test_every_codec_is_stored_and_decodes_what_it_encodes() -> None:
    for name in CODECS:
        x = vectors() if name != "grey_levels" else torch.randint(0, 17, (40, 1, 4, 4), dtype=torch.uint8)
        codec: Codec = codec_for(dataset(x), name)
        z, weight = codec.encode(x, NoiseStream(0, range(len(x))))
        assert z.dtype == torch.float32
        assert weight.dtype == torch.float64
        assert stored_codec(describe_codec(codec)) == codec
        torch.testing.assert_close(codec.decode(z), x, rtol=1e-6, atol=1e-4)


def test_what_cannot_be_encoded_is_refused() -> None:
    x = vectors()
    x[:, 3] = 7.25
    with pytest.raises(InputError, match=r"mine: column 3 \(always 7.25\): constant, so that it cannot be stand"):
        codec_for(dataset(x))
    with pytest.raises(InputError, match=r"mine: column mass \(always 7.25\)"):
        codec_for(dataset(x, columns=("a", "b", "c", "mass", "d")))
    x[:, 3] = 1e6 + 1e-3 * torch.randn(len(x))  # a deviation that float32 cannot hold
    with pytest.raises(InputError, match="constant"):
        codec_for(dataset(x))
    codec = codec_for(dataset(vectors()))
    with pytest.raises(InputError, match=r"codec='statistics of 5 channels': expected those of data of shape \(4, 6\)"):
        codec.encode(torch.zeros(4, 6))
    with pytest.raises(InputError, match=r"codec='statistics of 5 channels'"):
        codec.decode(torch.zeros(4, 6))
    with pytest.raises(InputError, match=r"NaN or infinite values=1: expected none; the sampler or the network"):
        codec.decode(torch.tensor([[math.nan, 0.0, 0.0, 0.0, 0.0]]))
    with pytest.raises(InputError, match=r"x dtype=torch.float32: expected uint8, grey levels 0 to 16"):
        GreyLevels(17).encode(torch.zeros(1, 1, 2, 2))
    for name, data in (("grey_levels", dataset(vectors())), ("standardised", dataset(torch.zeros(4, 1, 2, 2).byte()))):
        with pytest.raises(InputError, match=rf"codec.name='{name}': expected a codec for"):
            codec_for(data, name)
    with pytest.raises(InputError, match="codec='standardized': unknown; did you mean 'standardised'"):
        codec_for(dataset(vectors()), "standardized")
    with pytest.raises(InputError, match=r"std=0\.0: expected a number above 0"):
        Standardised((0.0,), (0.0,))
    with pytest.raises(InputError, match="as many means as standard deviations"):
        Standardised((0.0, 1.0), (1.0,))
    with pytest.raises(InputError, match="fields of codec 'standardised'='mean': expected mean, std"):
        stored_codec({"name": "standardised", "mean": [0.0]})
