"""Arrays from a NumPy ``.npz`` file: 8-bit images or continuous vectors."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.base import DATASETS, Dataset, count_test, random_split
from sde_diffusion.errors import InputError, require


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of the file; pickled objects are refused, because unpickling runs code."""
    try:
        with path.open("rb") as file:
            if not file.peek(6).startswith((b"PK", b"\x93NUMPY")):  # what numpy.load takes for a pickle
                raise ValueError("neither a zip archive nor a NumPy array")
            content = np.load(file, allow_pickle=False)
            arrays = dict(content) if isinstance(content, np.lib.npyio.NpzFile) else None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"root='{path}': not a readable .npz file of plain arrays ({reason})") from error
    if arrays is None:
        raise InputError(f"root='{path}': expected an .npz file, got a single .npy array; save it with numpy.savez")
    return arrays


def _to_tensor(name: str, array: np.ndarray) -> Tensor:
    """Make uint8 images (N, C, H, W) or float32 (N, *) of an array.

    Raises:
        InputError: on another dtype, or a shape that does not say where the channels are.
    """
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, which Dataset refuses
            return torch.from_numpy(np.asarray(array, dtype=np.float32))
    kinds = "uint8 (images) or floating point (vectors)"
    require(array.dtype == np.uint8, f"array {name} dtype", str(array.dtype), kinds, "convert it with astype")
    images = torch.from_numpy(array)
    if images.ndim == 3:
        return images[:, None]
    require(images.ndim == 4, f"array {name} shape", array.shape, "(N, H, W), (N, H, W, C) or (N, C, H, W)")
    first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
    layouts = "1 or 3 channels either second, (N, C, H, W), or last, (N, H, W, C)"
    remedy = "both fit: nothing tells which it is" if first else "neither fits"
    require(first != last, f"array {name} shape", array.shape, layouts, remedy)
    return images if first else images.permute(0, 3, 1, 2).contiguous()


@DATASETS.register("npz")
def npz(root: str = "", test_fraction: float = 0.1, levels: int = 256) -> Dataset:
    """The arrays ``train`` and ``test`` of an ``.npz`` file, or its only array, split by a fixed permutation.

    uint8 arrays are images, with channels second, last or absent; floating-point arrays (N, *) are continuous data that
    are used as they are: bring them to about zero mean and unit variance.

    Args:
        root: the file.
        test_fraction: share of a single array that is held out, in (0, 1).
        levels: number of grey levels of uint8 images, 2 … 256.

    Raises:
        InputError: on a missing or damaged file, pickled objects, other dtypes or shapes, NaN or infinity.
    """
    require(isinstance(root, str) and root != "", "root", root, "an .npz file")
    path = Path(root).expanduser()
    require(path.is_file(), "root", root, "an existing .npz file")
    arrays = _read(path)
    if {"train", "test"} <= arrays.keys():
        train, test = _to_tensor("train", arrays["train"]), _to_tensor("test", arrays["test"])
    else:
        names = sorted(arrays)
        require(len(names) == 1, "root", root, f"arrays 'train' and 'test', or a single array; it has {names}")
        data = _to_tensor(names[0], arrays[names[0]])
        require(data.ndim >= 1, f"array {names[0]} shape", (), "(N, *)")
        train_indices, test_indices = random_split(len(data), count_test(len(data), test_fraction, f"root='{root}'"))
        train, test = data[train_indices], data[test_indices]
    return Dataset("npz", train, test, levels=levels if train.dtype == torch.uint8 else None)
