"""Metrics of samples against a data set: of images through a feature network, of all other data as they are.

Images are handed over in memory as uint8 and go through the feature network once; Fréchet distance, KID, Inception
score, precision and recall are then computed from the features, by torch-fidelity's functions where these give them.

Vectors, series and volumes have no feature network: their features are their coordinates, compared by energy distance,
sliced Wasserstein distance, a two-sample test, precision and recall.

A standard error is of both samples and data, each a finite sample of its law: in 92 to 98 % of repetitions the value ±
1.96 errors covers the expectation of the metric at these numbers of samples and data (which of KID, the energy distance
and "FD ∞" is the value of infinitely many). Where no such error is known it is NaN. That of the sliced Wasserstein
distance alone is too large, by up to √2, for nearly equal laws.

References:
    M. Heusel et al., 2017, arXiv:1706.08500 (FID). M. Bińkowski et al., 2018, arXiv:1801.01401 (KID). T. Salimans et
    al., 2016, arXiv:1606.03498 (Inception score). T. Kynkäänniemi et al., 2019, arXiv:1904.06991 (precision, recall).
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require, require_int
from sde_diffusion.evaluation import extractors
from sde_diffusion.evaluation.distances import (
    energy_distance,
    sliced_wasserstein,
    thinned,
    two_sample_test,
)
from sde_diffusion.evaluation.frechet import frechet_distance
from sde_diffusion.evaluation.kernels import cubic, squared_mmd
from sde_diffusion.evaluation.precision_recall import precision_recall
from sde_diffusion.evaluation.uncertainty import Estimate, mean_of
from sde_diffusion.files import beside, write_atomically
from sde_diffusion.noise import generator, stream
from sde_diffusion.ops import per_example
from sde_diffusion.reading import read_arrays, require_file
from sde_diffusion.registry import Registry

LEAST = 10
"""Samples of any comparison, and splits of the Inception score."""
COORDINATES_MOST = 5000
"""Samples of either set whose coordinates are compared pair by pair; of more, as many are drawn."""
SPLITS = 10
"""Of the Inception score (Salimans et al. 2016)."""
STUDENT = 2.26 / 1.96
"""Student's 97.5 % quantile of nine degrees of freedom, over the normal law's."""
_NUMPY_SEEDS = 1 << 32


@dataclass(frozen=True)
class Features:
    """What a feature network makes of N images, or the coordinates of N samples that have none.

    Attributes:
        features: (N, F), for all metrics but the Inception score.
        logits: (N, C), for the Inception score; None of a network that does not classify.
        coordinates: whether features are the samples themselves, as they were handed over, and not a network's.
    """

    features: Tensor
    logits: Tensor | None
    coordinates: bool = False

    def arrays(self) -> dict[str, Any]:
        """Return what there is by name, to be kept in a file."""
        found: dict[str, Any] = {"features": self.features.numpy()}
        if self.logits is not None:
            found["logits"] = self.logits.numpy()
        return found | ({"coordinates": np.array(True)} if self.coordinates else {})

    @classmethod
    def of_arrays(cls, arrays: dict[str, np.ndarray]) -> Features:
        """Return what :meth:`arrays` gave; other names are left alone."""
        logits = torch.from_numpy(arrays["logits"]) if "logits" in arrays else None
        return cls(torch.from_numpy(arrays["features"]), logits, "coordinates" in arrays)


def join(parts: Sequence[Features]) -> Features:
    """Return the features of several batches as one."""
    logits = [part.logits for part in parts if part.logits is not None]
    features = torch.cat([part.features for part in parts])
    return Features(features, torch.cat(logits) if logits else None, parts[0].coordinates)


class Extractor:
    """A feature network by its name in torch-fidelity's registry.

    Args:
        name: "digits", "fashion", "inception-v3-compat", or another of torch-fidelity's that has both layers.
        device: where it runs.
        weights: file of the weights, for torch-fidelity's own networks where there is no download.

    Raises:
        InputError: on an unknown name, or weights that are missing or do not fit.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu", weights: Path | None = None) -> None:
        from torch_fidelity import registry
        from torch_fidelity.utils import create_feature_extractor

        known = registry.FEATURE_EXTRACTORS_REGISTRY
        require(name in known, "extractor", name, f"one of {', '.join(known)}")
        if weights is not None:
            require_file("inception_weights", weights)
        self.name, self.device = name, torch.device(device)
        self.digest = extractors.digest(name, weights)
        chosen = [known[name].get_default_feature_layer_for_metric(metric) for metric in ("fid", "isc")]
        layers = list(dict.fromkeys(chosen))  # CLIP and DINOv2 have one layer, and no classes to score
        options = {"cuda": self.device.type == "cuda", "verbose": False}
        path = None if weights is None else str(weights)
        try:
            if weights is not None:
                torch.load(weights, weights_only=True)  # torch-fidelity reads any pickle: refuse one that holds code
            net = create_feature_extractor(name, layers, feature_extractor_weights_path=path, **options)
        except Exception as error:  # a download that fails, a file that is no checkpoint: many kinds
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(
                f"extractor={name!r}: its weights cannot be had ({reason}); without a connection give "
                "--inception_weights=FILE, or use a built-in extractor: " + ", ".join(extractors.BUILT_IN)
            ) from None
        self._net, self._layers = net.to(self.device).eval(), layers

    @property
    def metric(self) -> str:
        """Name of the Fréchet distance: FID, or FD with the extractor's name."""
        return extractors.metric_name(self.name)

    def __call__(self, images: Tensor, batch_size: int = 256) -> Features:
        """Return the features of uint8 images (N, C, H, W); grey ones are given three channels where it wants them.

        Raises:
            InputError: on other dtypes, or a shape that the network does not take.
        """
        ok = images.dtype == torch.uint8 and images.ndim == 4 and len(images) > 0
        require(ok, "images", f"{images.dtype} {tuple(images.shape)}", "uint8 (N, C, H, W)")
        parts = []
        with torch.no_grad():
            for batch in torch.split(images, batch_size):
                if self.name not in extractors.BUILT_IN and batch.shape[1] == 1:
                    batch = batch.expand(-1, 3, -1, -1)
                found = self._net.convert_features_tuple_to_dict(self._net(batch.to(self.device)))
                features, *logits = (found[layer].float().cpu() for layer in self._layers)
                parts.append(Features(features, logits[0] if logits else None))
        return join(parts)


class Coordinates:
    """What stands in for an :class:`Extractor` where data have no feature network: the samples themselves."""

    name = "coordinates"
    digest = "coordinates as they are"
    metric = "energy distance"

    def __call__(self, x: Tensor) -> Features:
        """Return samples (N, *) as features (N, D), on the CPU, float32 (float64 if they are); NaN is let through.

        Raises:
            InputError: if there are none.
        """
        require(x.ndim > 0 and x.numel() > 0, "samples.shape", tuple(x.shape), "one sample or more, (N, *)")
        x = per_example(x.detach().cpu())
        return Features(x if x.dtype == torch.float64 else x.float(), None, coordinates=True)


def content_hash(x: Tensor, conditions: Mapping[str, Tensor] | None = None) -> str:
    """Return the SHA-256 of images or other data, and of what they are conditioned on: shape, dtype, every number."""
    found = hashlib.sha256()
    for name, values in [("", x), *sorted((conditions or {}).items())]:
        found.update(f"{name}{values.dtype} {tuple(values.shape)}".encode())
        found.update(values.contiguous().numpy().tobytes())
    return found.hexdigest()


def cache_folder() -> Path:
    """Return the folder of cached reference features."""
    home = os.path.expanduser("~")
    if home == "~":  # a user without one, as in containers
        home = tempfile.gettempdir()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(home) / ".cache") / "sde-diffusion"


def reference_features(extractor: Extractor | Coordinates, images: Tensor) -> Features:
    """Return the features of a data set, computed once and kept under the hashes of images and extractor.

    Coordinates, being the data, are not kept.
    """
    if isinstance(extractor, Coordinates):
        return extractor(images)
    key = hashlib.sha256(f"{extractor.digest} {content_hash(images)}".encode()).hexdigest()
    path = cache_folder() / f"{extractor.name}-{key[:24]}.npz"
    with suppress(InputError, KeyError, OSError):  # a cache: what cannot be read of it is made again
        return Features.of_arrays(read_arrays("cache", path))
    found = extractor(images)
    with beside(path):
        write_atomically(path, lambda p: np.savez(p, **found.arrays()))
    return found


def require_enough(name: str, count: int, reference: Features, kid_subset: int = 0) -> None:
    """Refuse a number of images, or other samples, that is too small for some metric.

    Args:
        name: what the number is called, for the message.

    Raises:
        InputError: names the least number: for a covariance of full rank, KID subsets, the score's ten splits; of
            coordinates always 10.
    """
    require_int("kid_subset", kid_subset, 0)
    if reference.coordinates:
        require(count >= LEAST, name, count, f"at least {LEAST} samples")
        return
    features = reference.features.shape[1]
    least = max(features + 1, kid_subset, LEAST)
    why = f"KID subsets of {kid_subset}" if kid_subset == least else f"{features} features"
    require(count >= least, name, count, f"at least {least} images for {why}")


@dataclass(frozen=True)
class Comparison:
    """Samples and what they are compared with, as metrics are given them.

    Attributes:
        samples: features of the samples.
        reference: features of the data.
        name: of the headline: the Fréchet distance, as :attr:`Extractor.metric`, or :attr:`Coordinates.metric`.
        kid_subset: images of a KID subset; 0 takes all at once.
        seed: of subsets, halves, splits, projections and permutations.
    """

    samples: Features
    reference: Features
    name: str
    kid_subset: int = 0
    seed: int = 0

    @property
    def coordinates(self) -> bool:
        """Whether features are the samples themselves, and not a network's."""
        return self.reference.coordinates


METRICS: Registry[dict[str, float]] = Registry("metric")
"""Functions of a :class:`Comparison` that return numbers by name; the standard error of "x" is called "x error".

One that does not apply to such features returns nothing.
"""


def _named(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name} error": found.std_error}


@METRICS.register("frechet")
def frechet_of_features(given: Comparison) -> dict[str, float]:
    """The Fréchet distance and its value without bias, of infinitely many samples and data; nothing of coordinates."""
    if given.coordinates:
        return {}
    found = frechet_distance(given.samples.features, given.reference.features, given.seed)
    return _named(given.name, found.finite) | _named(f"{given.name} ∞", found.limit)


@METRICS.register("kid")
def kernel_distance(given: Comparison) -> dict[str, float]:
    """KID, the mean over disjoint subsets, or of all at once; nothing of coordinates."""
    if given.coordinates:
        return {}
    x, y = (part.features.double() for part in (given.samples, given.reference))
    count = min(len(x), len(y)) // given.kid_subset if given.kid_subset else 1
    # torch-fidelity's subsets overlap, so that their spread is no error, and it takes no sets of two sizes.
    shuffled = (a[torch.randperm(len(a), generator=generator(given.seed, "KID"))].tensor_split(count) for a in (x, y))
    return _named("KID", mean_of([squared_mmd(a, b, cubic, given.seed) for a, b in zip(*shuffled, strict=True)]))


@METRICS.register("precision_recall")
def nearest_of_features(given: Comparison) -> dict[str, float]:
    """The shares of samples near the data, and of data near the samples, of sets of one size.

    Of coordinates at most 5,000, in float64 and about the mean of the data: their distances may be small beside it.
    """
    x, y = given.samples.features, given.reference.features
    if given.coordinates:
        centre = y.double().mean(dim=0)
        x, y = thinned(x, COORDINATES_MOST, given.seed).double() - centre, y.double() - centre
    random = generator(given.seed, "sets of one size")
    found = precision_recall(x, y[torch.randperm(len(y), generator=random)[: len(x)]], given.seed)
    return _named("precision", found.precision) | _named("recall", found.recall)


@METRICS.register("inception_score")
def inception_score(given: Comparison) -> dict[str, float]:
    """The Inception score, the mean over ten splits; nothing where the feature network does not classify.

    The splits are independent: the error of their mean is their spread over √10, larger by Student's quantile, since
    ten values know their spread but roughly. It is about the expectation of a split of so many samples.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    if given.samples.logits is None:
        return {}
    seed = stream(given.seed, "Inception score") % _NUMPY_SEEDS
    score = isc_features_to_metric(given.samples.logits, splits=SPLITS, rng_seed=seed)
    # Over √9, for torch-fidelity's standard deviation divides by ten, not nine.
    spread = float(score["inception_score_std"]) / math.sqrt(SPLITS - 1)
    return _named("IS", Estimate(float(score["inception_score_mean"]), STUDENT * spread))


@METRICS.register("energy_distance")
def energy_of_coordinates(given: Comparison) -> dict[str, float]:
    """The energy distance and its error, of at most 5,000 of either set; nothing of a network's features."""
    if not given.coordinates:
        return {}
    x, y = (thinned(f.features, COORDINATES_MOST, given.seed) for f in (given.samples, given.reference))
    return _named(given.name, energy_distance(x, y))


@METRICS.register("sliced_wasserstein")
def transport_of_coordinates(given: Comparison) -> dict[str, float]:
    """The sliced 2-Wasserstein distance and its error; nothing of a network's features."""
    if not given.coordinates:
        return {}
    found = sliced_wasserstein(given.samples.features, given.reference.features, seed=given.seed)
    return _named("sliced Wasserstein", found)


@METRICS.register("two_sample")
def significance_of_coordinates(given: Comparison) -> dict[str, float]:
    """The p-value of the permutation test of the energy distance; nothing of a network's features."""
    if not given.coordinates:
        return {}
    return {"two-sample p": two_sample_test(given.samples.features, given.reference.features, seed=given.seed).p_value}


def measure(samples: Features, reference: Features, name: str, kid_subset: int = 0, seed: int = 0) -> dict[str, float]:
    """Return all registered metrics of samples against a reference, the headline first.

    Coordinates of samples that are not all finite have every metric NaN: a sampler that diverged is no mistake of the
    caller's.

    Args:
        name: of the headline, as :attr:`Extractor.metric` or :attr:`Coordinates.metric`.
        kid_subset: images of a KID subset; 0 takes all at once.
        seed: of subsets, halves, splits, projections and permutations.

    Raises:
        InputError: on too few images or samples for a metric; names the least number. On a reference of other features,
            or coordinates that are not finite.
    """
    x, y = samples.features, reference.features
    require(x.shape[1] == y.shape[1], "features", x.shape[1], f"{y.shape[1]} as of the reference")
    kinds = {True: "coordinates", False: "a network's features"}
    kind, expected = kinds[samples.coordinates], kinds[reference.coordinates]
    require(kind == expected, "samples", kind, f"{expected} as of the reference")
    for what, count in (("samples", len(x)), ("reference", len(y))):
        require_enough(what, count, reference, kid_subset)
    finite = [not part.coordinates or bool(part.features.isfinite().all()) for part in (samples, reference)]
    require(finite[1], "reference", "NaN or infinite", "finite numbers")
    diverged = not finite[0]
    given = Comparison(reference if diverged else samples, reference, name, kid_subset, seed)
    first = "energy_distance" if given.coordinates else "frechet"
    found: dict[str, float] = {}
    for metric in (first, *(other for other in METRICS if other != first)):
        found |= METRICS[metric](given)
    return dict.fromkeys(found, math.nan) if diverged else found
