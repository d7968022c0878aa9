"""A data set of one's own, with classes and another condition: log-normal vectors in closed form."""

from __future__ import annotations

import torch

from sde_diffusion.data import DATASETS, Dataset
from sde_diffusion.errors import require_int


@DATASETS.register("own_dataset")
def log_normal(num_samples: int = 2000, seed: int = 0) -> Dataset:
    """log x = ±2 + scale · ε in both columns: + in class "large", − in "small"; scale is uniform in ½ … 1.

    Args:
        num_samples: size of either split.
        seed: any whole number ≥ 0.
    """
    require_int("num_samples", num_samples, 2)
    require_int("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    splits = []
    for _ in range(2):
        classes = torch.randint(2, (num_samples,), generator=generator)
        scale = 0.5 + 0.5 * torch.rand(num_samples, generator=generator)
        eps = torch.randn(num_samples, 2, generator=generator)
        splits.append(((4.0 * classes - 2.0)[:, None] + scale[:, None] * eps, classes, scale))
    (train, *known), (test, *other) = splits
    conditions = dict(zip(("classes", "scale"), zip(known, other, strict=True), strict=True))
    names = ("small", "large"), ("width", "height")
    return Dataset("own_dataset", train.exp(), test.exp(), None, conditions, *names)
