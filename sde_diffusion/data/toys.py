"""Two-dimensional toys: laws one can plot, centred and scaled by their exact moments.

The scale is one number for both coordinates, so shapes are kept and the mean variance of a coordinate is 1. Mean and
scale belong to the law and not to the draw: another seed or size is another sample of the same law.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from sde_diffusion.data.base import CLASSES, DATASETS, Dataset
from sde_diffusion.errors import require_float, require_int
from sde_diffusion.memory import require_memory

_Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, ...]]


def _toy(
    name: str,
    num_samples: int,
    seed: int,
    draw: _Draw,
    mean: tuple[float, float],
    variance: float,
    class_names: tuple[str, ...] = (),
) -> Dataset:
    """Draw both splits and standardise them.

    Args:
        name: the registered name.
        num_samples: size of either split.
        seed: any whole number ≥ 0.
        draw: ``draw(rng, n)`` returns the two coordinates and, if they have names, the classes, (n,) each.
        mean: exact mean of the two coordinates.
        variance: exact variance of a coordinate, the mean over both.
        class_names: names of the classes, or none.
    """
    require_int("num_samples", num_samples, 1)
    require_int("seed", seed, 0)
    # Two splits, in float64 at first:
    require_memory("num_samples", num_samples, 2 * 64 * num_samples, "them", "draw fewer")
    points, classes = [], []
    for sequence in np.random.SeedSequence(seed).spawn(2):
        x, y, *of = draw(np.random.default_rng(sequence), num_samples)
        scaled = (np.stack([x, y], axis=1) - mean) / math.sqrt(variance)
        points.append(torch.from_numpy(scaled).to(torch.float32))
        classes += [torch.from_numpy(c).to(torch.int64) for c in of]
    known = {CLASSES: (classes[0], classes[1])} if class_names else {}
    return Dataset(name, points[0], points[1], None, known, class_names)


@DATASETS.register("mixture")
def mixture(num_samples: int = 10000, seed: int = 0, modes: int = 8, std: float = 0.1) -> Dataset:
    """Equal Gaussians evenly on a circle; a point's class is its Gaussian, counted from angle 0.

    Args:
        num_samples: size of either split.
        seed: any whole number ≥ 0.
        modes: number of Gaussians, at least 3.
        std: their standard deviation ≥ 0 in radii of the circle, before scaling by 1/√(½ + std²).

    Raises:
        InputError: on an option out of range.
    """
    require_int("modes", modes, 3)
    require_float("std", std, 0.0)

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
        mode = rng.integers(modes, size=n)
        angle = 2.0 * math.pi * mode / modes
        return np.cos(angle) + std * rng.standard_normal(n), np.sin(angle) + std * rng.standard_normal(n), mode

    names = tuple(str(mode) for mode in range(modes))
    return _toy("mixture", num_samples, seed, draw, (0.0, 0.0), 0.5 + std**2, names)


@DATASETS.register("two_moons")
def two_moons(num_samples: int = 10000, seed: int = 0, std: float = 0.05) -> Dataset:
    """Two interleaved half circles, (cos θ, sin θ) and (1 − cos θ, ½ − sin θ) with θ ~ U(0, π), plus Gaussian noise.

    The former are class 0, "upper", the latter class 1, "lower".

    Args:
        num_samples: size of either split.
        seed: any whole number ≥ 0.
        std: standard deviation ≥ 0 of the noise in radii of the half circles, before scaling.

    Raises:
        InputError: on an option out of range.
    """
    require_float("std", std, 0.0)

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
        angle, lower = math.pi * rng.random(n), rng.random(n) < 0.5
        x = np.where(lower, 1.0 - np.cos(angle), np.cos(angle))
        y = np.where(lower, 0.5 - np.sin(angle), np.sin(angle))
        return x + std * rng.standard_normal(n), y + std * rng.standard_normal(n), lower

    # Var x = 3/4 and Var y = 9/16 − 1/π, by E sin θ = 2/π and E cos²θ = E sin²θ = ½.
    variance = 0.5 * (0.75 + 0.5625 - 1.0 / math.pi) + std**2
    return _toy("two_moons", num_samples, seed, draw, (0.5, 0.25), variance, ("upper", "lower"))


@DATASETS.register("swiss_roll")
def swiss_roll(num_samples: int = 10000, seed: int = 0, std: float = 0.3) -> Dataset:
    """A spiral (θ cos θ, θ sin θ) with θ ~ U(3π/2, 9π/2), plus Gaussian noise; without classes.

    Args:
        num_samples: size of either split.
        seed: any whole number ≥ 0.
        std: standard deviation ≥ 0 of the noise, where the spiral's arms lie 2π apart, before scaling.

    Raises:
        InputError: on an option out of range.
    """
    require_float("std", std, 0.0)
    start, stop = 1.5 * math.pi, 4.5 * math.pi

    def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, ...]:
        angle = rng.uniform(start, stop, n)
        x, y = angle * np.cos(angle), angle * np.sin(angle)
        return x + std * rng.standard_normal(n), y + std * rng.standard_normal(n)

    # ∫ θ cos θ = θ sin θ + cos θ and ∫ θ sin θ = sin θ − θ cos θ, where cos vanishes at both ends; E r² = E θ².
    mean = ((stop + start) / (stop - start), 2.0 / (stop - start))
    square = (stop**3 - start**3) / (3.0 * (stop - start))
    variance = 0.5 * (square - mean[0] ** 2 - mean[1] ** 2) + std**2
    return _toy("swiss_roll", num_samples, seed, draw, mean, variance)
