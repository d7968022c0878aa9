"""Fashion-MNIST and CIFAR-10: a local copy in any of the usual layouts, or else torchvision's download."""

from __future__ import annotations

import contextlib
import gzip
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.base import DATASETS, Dataset
from sde_diffusion.errors import InputError, require

DEFAULT_ROOT = "~/.cache/sde-diffusion"
DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package ``dataset-fashion-mnist`` puts its idx.gz files."""
_REMEDY = "delete it and fetch it again"


def _folder(root: str) -> Path:
    require(isinstance(root, str) and root != "", "root", root, "a folder", f"the default is {DEFAULT_ROOT}")
    path = Path(root).expanduser()
    require(not path.exists() or path.is_dir(), "root", root, "a folder, not a file")
    return path


def _download(name: str, make: Callable[..., object], root: Path, looked_for: str) -> None:
    """Call ``make``, a torchvision data set that downloads into ``root``; a failure becomes one line."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # a command's stdout is for its result
            make(str(root), download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"dataset={name!r}: no local copy under root='{root}' (looked for {looked_for}) and the download failed"
            f" ({reason}); go online once, or set root to a folder that holds it"
        ) from error


def _read_idx_images(path: Path) -> Tensor:
    """Read an idx3-ubyte file, compressed or not: uint8 (N, 1, H, W).

    torchvision reads only uncompressed files in its own layout, and the format is a 16-byte header (magic number, N,
    H, W: big-endian 32-bit) before the pixels; hence these few lines.

    Raises:
        InputError: if the file cannot be read, is truncated or is something else; names it.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"file='{path}': cannot be read ({error}); {_REMEDY}") from error
    header = np.frombuffer(content, dtype=">u4", count=4) if len(content) >= 16 else np.zeros(4, np.uint32)
    magic, *shape = header.tolist()
    require(magic == 0x803, "file", str(path), "an idx3-ubyte file of images (magic number 0x803)", _REMEDY)
    size = 16 + shape[0] * shape[1] * shape[2]
    require(len(content) == size, "file", str(path), f"{size} bytes as its header says, not {len(content)}", _REMEDY)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).copy()).reshape(shape[0], 1, shape[1], shape[2])


def _find_idx(folders: Sequence[Path]) -> tuple[Path, Path] | None:
    """Return the training and test images of the first folder that has both, uncompressed ones first."""
    for folder in folders:
        for ending in ("", ".gz"):
            train, test = (folder / f"{split}-images-idx3-ubyte{ending}" for split in ("train", "t10k"))
            if train.is_file() and test.is_file():
                return train, test
    return None


@DATASETS.register("fashion_mnist")
def fashion_mnist(root: str = DEFAULT_ROOT) -> Dataset:
    """70000 photographs of clothes, 28×28 pixels in 256 grey levels; 60000 train, 10000 test.

    Args:
        root: a folder with the idx or idx.gz files, itself or in ``FashionMNIST/raw``, ``raw`` or ``fashion-mnist``;
            Debian's ``dataset-fashion-mnist`` is looked at next, and then torchvision downloads into ``root``.

    Raises:
        InputError: if there is no copy and no download, or a file is damaged.

    References:
        H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
        Algorithms", 2017, arXiv:1708.07747.
    """
    folder = _folder(root)
    raw = folder / "FashionMNIST" / "raw"
    folders = [folder, raw, folder / "raw", folder / "fashion-mnist", Path(DEBIAN_FASHION_MNIST)]
    files = _find_idx(folders)
    if files is None:
        from torchvision.datasets import FashionMNIST

        looked_for = (
            "train-images-idx3-ubyte and t10k-images-idx3-ubyte, with or without .gz, there, in FashionMNIST/raw, raw,"
            f" fashion-mnist and in {DEBIAN_FASHION_MNIST}"
        )
        _download("fashion_mnist", FashionMNIST, folder, looked_for)
        files = raw / "train-images-idx3-ubyte", raw / "t10k-images-idx3-ubyte"
    train, test = (_read_idx_images(file) for file in files)
    return Dataset("fashion_mnist", train, test, levels=256)


@DATASETS.register("cifar10")
def cifar10(root: str = DEFAULT_ROOT) -> Dataset:
    """60000 photographs of ten kinds of things, 3×32×32 pixels in 256 levels; 50000 train, 10000 test.

    torchvision reads the files, which are pickles, and only after their checksums are right.

    Args:
        root: a folder with ``cifar-10-batches-py`` or ``cifar-10-python.tar.gz`` (unpacked beside itself), or the
            former itself; without them torchvision downloads into ``root``.

    Raises:
        InputError: if there is no copy and no download, or a file is damaged.

    References:
        A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, technical report, University of
        Toronto.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    folder = _folder(root)
    if folder.name == CIFAR10.base_folder and folder.is_dir():
        folder = folder.parent
    batches, archive = folder / CIFAR10.base_folder, folder / CIFAR10.filename
    if not batches.is_dir():
        if archive.exists():  # torchvision would silently fetch it again
            intact = check_integrity(str(archive), CIFAR10.tgz_md5)
            require(intact, "file", str(archive), f"md5 {CIFAR10.tgz_md5}", _REMEDY)
        _download("cifar10", CIFAR10, folder, f"{CIFAR10.base_folder} and {CIFAR10.filename}")
    try:
        splits = [CIFAR10(str(folder), train=train).data for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise InputError(f"folder='{batches}': a file is missing or damaged ({error}); {_REMEDY}") from error
    train, test = (torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous() for pixels in splits)
    return Dataset("cifar10", train, test, levels=256)
