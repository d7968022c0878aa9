"""Data sets: each a registered function of a few options that returns a :class:`Dataset` held in memory."""

from sde_diffusion.data import digits, image_folder, npz, torchvision_sets, toys  # noqa: F401  (each registers itself)
from sde_diffusion.data.base import DATASETS, Dataset, Examples, random_split, train_batch

__all__ = ["DATASETS", "Dataset", "Examples", "random_split", "train_batch"]
