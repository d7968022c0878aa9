"""The default data: scikit-learn's real scans of handwritten digits, which need no download."""

from __future__ import annotations

import torch

from sde_diffusion.data.base import DATASETS, Dataset, random_split


@DATASETS.register("digits")
def digits() -> Dataset:
    """1797 scans of 8×8 pixels in 17 grey levels; 1347 train, 450 test, split by a fixed permutation.

    References:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", 1998, UCI Machine Learning Repository (its
        test set; read by ``sklearn.datasets.load_digits``).
    """
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images).to(torch.uint8)[:, None]
    train, test = random_split(len(images), num_test=450)
    return Dataset("digits", images[train], images[test], levels=17)
