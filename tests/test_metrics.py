"""Ground truth 14 and what surrounds it: Fréchet distances of known Gaussians, extractors, coordinates, refusals."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.codecs.grey_levels import to_uint8
from sde_diffusion.data import DATASETS
from sde_diffusion.evaluation import metrics
from sde_diffusion.evaluation.extractors import BUILT_IN, WEIGHTS, metric_name
from sde_diffusion.evaluation.frechet import frechet
from sde_diffusion.evaluation.metrics import (
    Coordinates,
    Extractor,
    Features,
    measure,
)


def gaussian(n: int, mean: Tensor, std: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(n, len(mean), generator=generator, dtype=torch.float64)


def images(n: int = 200, split: str = "train") -> Tensor:
    return to_uint8(getattr(DATASETS.build("digits"), split)[:n], 17)


def test_frechet_distance_of_known_gaussians() -> None:
    """Diagonal covariances commute: |m − m'|² + Σ (s − s')²."""
    m, s = torch.tensor([0.0, 1.0, -1.0]).double(), torch.tensor([1.0, 0.5, 2.0]).double()
    shifted, wider = m + torch.tensor([0.3, 0.0, -0.4]), s * torch.tensor([1.0, 2.0, 1.5])
    exact = float((m - shifted).square().sum() + (s - wider).square().sum())
    x, y = gaussian(100_000, m, s, 0), gaussian(100_000, shifted, wider, 1)
    assert frechet(x, y) == pytest.approx(exact, abs=0.02)  # 5 standard errors of means and deviations
    assert frechet(x, x) == pytest.approx(0.0, abs=1e-6)
    assert frechet(x, y) == pytest.approx(frechet(y, x), rel=1e-6)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_extractors(name: str) -> None:
    assert (WEIGHTS / BUILT_IN[name].file).stat().st_size < 2_000_000
    extractor = Extractor(name)
    side = BUILT_IN[name].side
    x = torch.randint(0, 256, (5, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = extractor(x, batch_size=2)
    torch.testing.assert_close(found.features, extractor(x).features, rtol=1e-4, atol=1e-4)
    assert found.features.shape == (5, 64)
    assert found.logits.shape == (5, 10)
    assert extractor.metric == f"FD-{name}"
    assert len(extractor.digest) == 64
    with pytest.raises(sd.InputError, match=f"expected uint8 \\(1, {side}, {side}\\)"):
        extractor(x[..., 1:])
    with pytest.raises(sd.InputError, match="expected uint8"):
        extractor(x.float())
    assert metric_name("inception-v3-compat") == "FID"


def test_digits_extractor_knows_digits() -> None:
    """Its classes are the digits, right on at least 95 % of the held-out scans."""
    from sklearn.datasets import load_digits

    from sde_diffusion.data import random_split

    labels = torch.from_numpy(load_digits().target)
    _, test = random_split(len(labels), 450)
    found = Extractor("digits")(images(450, "test"))
    assert float((found.logits.argmax(dim=1) == labels[test]).double().mean()) >= 0.95


def test_measure_tells_real_from_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    extractor = Extractor("digits")
    reference = metrics.reference_features(extractor, images(450, "test"))
    real = metrics.measure(extractor(images(450)), reference, extractor.metric)
    generator = torch.Generator().manual_seed(0)
    random = extractor(torch.randint(0, 256, (450, 1, 8, 8), dtype=torch.uint8, generator=generator))
    noise = metrics.measure(random, reference, extractor.metric)
    assert real["FD-digits"] < 0.1 * noise["FD-digits"]
    assert real["KID"] < noise["KID"]
    assert real["precision"] > noise["precision"]
    assert real["recall"] > noise["recall"]
    assert 5.0 < real["IS"] <= 10.0
    assert real["FD-digits ∞"] < real["FD-digits"]
    assert noise["FD-digits error"] < 0.1 * noise["FD-digits"]


def test_reference_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    extractor = Extractor("digits")
    x = images(80)
    first = metrics.reference_features(extractor, x)
    (file,) = (tmp_path / "sde-diffusion").iterdir()
    original = Extractor.__call__
    monkeypatch.setattr(Extractor, "__call__", lambda *a: pytest.fail("computed again"))
    again = metrics.reference_features(extractor, x.clone())
    assert torch.equal(again.features, first.features)
    monkeypatch.setattr(Extractor, "__call__", original)
    other = x.clone()
    other[0, 0, 0, 0] += 1  # one grey level more, another data set
    metrics.reference_features(extractor, other)
    assert len(list((tmp_path / "sde-diffusion").iterdir())) == 2
    for torn in (b"torn", b"PK\x03\x04 torn"):  # a cache is made again
        file.write_bytes(torn)
        assert torch.equal(metrics.reference_features(extractor, x).features, first.features)


def test_too_few_images_say_the_minimum() -> None:
    x = torch.randn(70, 64, generator=torch.Generator().manual_seed(0))
    few, enough = Features(x[:60], x[:60, :10]), Features(x, x[:, :10])
    with pytest.raises(sd.InputError, match="samples=60: expected at least 65 images for 64 features"):
        metrics.measure(few, enough, "FD-digits")
    with pytest.raises(sd.InputError, match="reference=60: expected at least 65"):
        metrics.measure(enough, few, "FD-digits")
    with pytest.raises(sd.InputError, match="samples=70: expected at least 100 images"):
        metrics.measure(enough, enough, "FD-digits", kid_subset=100)


def test_unusable_extractors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(sd.InputError, match="extractor='vgg'"):
        Extractor("vgg")
    with pytest.raises(sd.InputError, match="inception_weights"):
        Extractor("inception-v3-compat", weights=tmp_path / "none.pth")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(sd.InputError, match="built-in extractor: digits, fashion") as error:
        Extractor("inception-v3-compat", weights=tmp_path / "bad.pth")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_inception_with_a_local_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path with weights of the right shape (random ones), grey and colour images, as for FID proper."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    empty: dict[str, Tensor] = {}
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: empty)
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        net = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"])
    torch.save(net.state_dict(), tmp_path / "inception.pth")
    extractor = Extractor("inception-v3-compat", weights=tmp_path / "inception.pth")
    assert extractor.metric == "FID"
    x = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey, colour = extractor(x), extractor(x.expand(-1, 3, -1, -1).contiguous())
    assert grey.features.shape == (3, 2048)
    torch.testing.assert_close(grey.features, colour.features)
    with pytest.raises(sd.InputError, match="at least 2049 images"):
        measure(grey, colour, extractor.metric)


def test_a_network_of_one_layer_whose_code_and_weights_come_from_its_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DINOv2 by torch-fidelity with another module in place of the download: no classes, hence no Inception score."""
    asked: list[tuple[str, ...]] = []

    def load(*names: str) -> torch.nn.Module:
        asked.append(names)
        return torch.nn.Sequential(torch.nn.AvgPool2d(56), torch.nn.Flatten())  # 3 × 224 × 224 → 48

    monkeypatch.setattr(torch.hub, "load", load)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    extractor = Extractor("dinov2-vit-s-14")
    assert asked == [("facebookresearch/dinov2", "dinov2_vits14")]
    assert extractor.metric == "FD-dinov2-vit-s-14"
    samples, reference = extractor(images()), metrics.reference_features(extractor, images(split="test"))
    assert samples.features.shape == (200, 48)
    assert samples.logits is None
    again = metrics.reference_features(extractor, images(split="test"))  # from the cache
    torch.testing.assert_close(again.features, reference.features, rtol=0.0, atol=0.0)
    rounding = 56**2 * 2.0**-24  # of a sum of as many float32 numbers
    grey = extractor(torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)).features.reshape(3, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # of ImageNet, for RGB
    torch.testing.assert_close(grey, ((200 / 255 - mean) / std)[:, None].expand(3, 16), rtol=rounding, atol=0.0)
    found = measure(samples, reference, extractor.metric)
    assert {"FD-dinov2-vit-s-14", "KID", "precision"} <= set(found)
    assert "IS" not in found


COORDINATES = Coordinates()
OF_COORDINATES = ["energy distance", "sliced Wasserstein", "two-sample p", "precision", "recall"]
OF_NETWORKS = ["FD", "FD ∞", "KID", "IS", "precision", "recall"]


def vectors(n: int, seed: int, shift: float = 0.0) -> Tensor:
    """Three components of means −3, 0 and 100 and deviations 0.1, 1 and 5, moved by ``shift`` deviations."""
    mean, std = torch.tensor([-3.0, 0.0, 100.0]).double(), torch.tensor([0.1, 1.0, 5.0]).double()
    return gaussian(n, mean + shift * std, std, seed).float()


def values(found: dict[str, float]) -> list[float]:
    return [found[name] for name in names(found)]


def names(found: dict[str, float]) -> list[str]:
    return sorted(name for name in found if not name.endswith(" error"))


def test_each_kind_of_features_has_its_own_metrics_and_the_headline_first() -> None:
    data = COORDINATES(vectors(80, 0))
    found = measure(COORDINATES(vectors(60, 1)), data, COORDINATES.metric)
    assert names(found) == sorted(OF_COORDINATES)
    assert list(found)[:2] == ["energy distance", "energy distance error"]
    x = torch.randn(80, 10, generator=torch.Generator().manual_seed(0))
    of_network = measure(Features(x[:60], x[:60]), Features(x, x), "FD")
    assert names(of_network) == sorted(OF_NETWORKS)
    assert list(of_network)[:2] == ["FD", "FD error"]
    with pytest.raises(sd.InputError, match="samples='coordinates': expected a network's features as of the ref"):
        measure(Features(x, None, coordinates=True), Features(x, x), "FD")


def test_coordinates_are_the_samples_as_they_are() -> None:
    x = torch.randn(7, 2, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(COORDINATES(x).features, x.reshape(7, 8))
    assert COORDINATES(x.double()).features.dtype == torch.float64
    assert COORDINATES(x.bfloat16()).features.dtype == torch.float32
    assert COORDINATES(x[:, 0, 0]).features.shape == (7, 1)
    found = COORDINATES(x)
    assert found.coordinates
    assert found.logits is None
    kept = metrics.join([Features.of_arrays(found.arrays()), found])  # as a sweep keeps batches
    assert kept.coordinates
    assert torch.equal(kept.features, found.features.repeat(2, 1))
    assert not Features.of_arrays(Features(found.features, found.features).arrays()).coordinates
    with pytest.raises(sd.InputError, match=r"samples.shape=\(0, 3\): expected one sample or more"):
        COORDINATES(x.new_zeros(0, 3))


def test_measures_of_coordinates_tell_equal_laws_from_others() -> None:
    data = COORDINATES(vectors(500, 0))
    equal = measure(COORDINATES(vectors(400, 1)), data, COORDINATES.metric)
    assert np.isnan(equal["energy distance error"])  # three directions, two of them small beside the third
    moved = measure(COORDINATES(vectors(400, 2, shift=2.0)), data, COORDINATES.metric)
    assert abs(equal["energy distance"]) < 0.01 * moved["energy distance"]
    assert moved["energy distance"] > 10.0 * moved["energy distance error"]
    # |m|²/D with m of two deviations of each component; that the empirical laws differ anyway adds what it does above.
    exact = 2.0 * np.sqrt((0.1**2 + 1.0**2 + 5.0**2) / 3.0)
    slack = 4.0 * moved["sliced Wasserstein error"] + equal["sliced Wasserstein"] ** 2 / exact
    assert moved["sliced Wasserstein"] == pytest.approx(exact, abs=slack)
    assert equal["two-sample p"] > 1e-3  # uniform: as rare as that
    assert moved["two-sample p"] == 1e-3  # the least of 999 permutations
    assert equal["precision"] > moved["precision"]
    assert equal["recall"] > moved["recall"]


def test_neighbours_of_coordinates_far_from_the_origin_are_found() -> None:
    """10⁴ deviations away, where float32 squares round by 10⁸ · 2⁻²⁴ = 6 deviations²."""
    x, y = gaussian(200, torch.zeros(2).double(), torch.ones(2).double(), 0), vectors(300, 1)[:, :2].double()
    here, there = (measure(COORDINATES(x + place), COORDINATES(y + place), COORDINATES.metric) for place in (0.0, 1e4))
    assert {name: there[name] for name in ("precision", "recall")} == {
        name: here[name] for name in ("precision", "recall")
    }
    single = measure(COORDINATES((x + 1e4).float()), COORDINATES((y + 1e4).float()), COORDINATES.metric)
    assert single["precision"] == pytest.approx(here["precision"], abs=0.02)  # of rounding places by 10⁴ · 2⁻²⁴


def test_reference_coordinates_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x = vectors(20, 0)
    assert torch.equal(metrics.reference_features(COORDINATES, x).features, x)
    assert not list(tmp_path.iterdir())
    assert metrics.content_hash(x) != metrics.content_hash(x + 1.0)


def test_samples_that_diverged_are_measured_as_nan_and_such_data_refused() -> None:
    data, bad = vectors(40, 0), vectors(30, 1)
    bad[3, 1] = torch.inf
    good = measure(COORDINATES(vectors(30, 1)), COORDINATES(data), COORDINATES.metric)
    found = measure(COORDINATES(bad), COORDINATES(data), COORDINATES.metric)
    assert list(found) == list(good)
    assert np.isnan(list(found.values())).all()
    data[0] = torch.nan
    with pytest.raises(sd.InputError, match="reference='NaN or infinite': expected finite numbers"):
        measure(COORDINATES(bad), COORDINATES(data), COORDINATES.metric)


def test_too_few_coordinates_say_the_minimum_of_samples() -> None:
    enough, few = (COORDINATES(vectors(n, 0)) for n in (10, 9))
    assert np.isfinite(values(measure(enough, enough, COORDINATES.metric))).all()
    with pytest.raises(sd.InputError, match=r"^samples=9: expected at least 10 samples$"):
        measure(few, enough, COORDINATES.metric)
    metrics.require_enough(
        "num_samples", 10, COORDINATES(torch.zeros(10, 3000)), kid_subset=1000
    )  # no covariance, no KID


def test_odd_coordinates_are_measured() -> None:
    """One component; one that is constant; more samples than are compared pair by pair."""
    constant = torch.cat([vectors(30, 0), torch.ones(30, 1)], dim=1)
    for x in (constant, constant[:, :1], constant[:, 3:], torch.ones(5001, 1)):
        found = measure(COORDINATES(x), COORDINATES(constant[:, : x.shape[1]]), COORDINATES.metric)
        assert np.isfinite(values(found)).all()


def test_a_metric_of_ones_own_sees_either_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics.METRICS, "_entries", dict(metrics.METRICS._entries))
    monkeypatch.setattr(metrics.METRICS, "_sources", dict(metrics.METRICS._sources))
    monkeypatch.setattr(metrics.METRICS, "_others", dict(metrics.METRICS._others))
    runpy.run_path(str(Path(__file__).parent / "outside" / "own_metric.py"))
    data = COORDINATES(vectors(80, 0))
    moved = measure(COORDINATES(data.features + 0.1), data, COORDINATES.metric)
    exact = float((0.1 / data.features.double().std(dim=0)).square().mean().sqrt())
    assert moved["mean distance"] == pytest.approx(exact, rel=1e-4)  # float32 at 100 rounds 0.1 by 4 · 10⁻⁵
    x = torch.randn(80, 10, generator=torch.Generator().manual_seed(0))
    assert measure(Features(x, x), Features(x, x), "FD")["mean distance"] == 0.0
