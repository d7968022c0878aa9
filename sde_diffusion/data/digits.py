"""The default data: scikit-learn's real scans of handwritten digits, which need no download."""

from __future__ import annotations

import torch

from sde_diffusion.data.base import CLASSES, DATASETS, Dataset, random_split


@DATASETS.register("digits")
def digits() -> Dataset:
    """1797 scans of 8×8 pixels in 17 grey levels, of classes 0 … 9; 1347 train, 450 test, by a fixed permutation.

    References:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", 1998, UCI Machine Learning Repository (its
        test set; read by ``sklearn.datasets.load_digits``).
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = torch.from_numpy(scans.images).to(torch.uint8)[:, None]
    classes = torch.from_numpy(scans.target).to(torch.int64)
    train, test = random_split(len(images), num_test=450)
    known = {CLASSES: (classes[train], classes[test])}
    return Dataset("digits", images[train], images[test], 17, known, class_names=tuple("0123456789"))
