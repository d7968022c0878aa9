"""Fashion-MNIST and CIFAR-10: a local copy in any of the usual layouts, or else torchvision's download."""

from __future__ import annotations

import contextlib
import gzip
import math
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.base import CLASSES, DATASETS, Dataset
from sde_diffusion.errors import InputError, require
from sde_diffusion.memory import require_memory

DEFAULT_ROOT = "~/.cache/sde-diffusion"
DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package ``dataset-fashion-mnist`` puts its idx.gz files."""
_REMEDY = "delete it and fetch it again"
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


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


def _read_idx(path: Path, what: str, rank: int) -> Tensor:
    """Read an idx-ubyte file, compressed or not: uint8 (N, H, W) of rank 3, (N,) of rank 1.

    torchvision reads only uncompressed files in its own layout, and the format is a header (magic number, then the
    shape: big-endian 32-bit) before the bytes; hence these few lines.

    Raises:
        InputError: if the file cannot be read, is truncated or is something else; names it.
    """
    length, kind = 4 * (1 + rank), f"an idx{rank}-ubyte file of {what} (magic number 0x80{rank})"
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            head = file.read(length)
            magic, *shape = np.frombuffer(head, ">u4").tolist() if len(head) == length else (0,)
            require(magic == 0x800 + rank, "file", str(path), kind, _REMEDY)
            size = math.prod(shape)
            require_memory("file", str(path), size, "what its header says that it holds", _REMEDY)
            content = file.read(size + 1)  # one more than there should be
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"file='{path}': cannot be read ({error}); {_REMEDY}") from error
    more = "or more" if len(content) > size else ""
    expected = f"{length + size} bytes as its header says, not {length + len(content)} {more}".strip()
    require(len(content) == size, "file", str(path), expected, _REMEDY)
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy()).reshape(shape)


def _read_labels(images: Path, size: int) -> Tensor:
    """Read the labels beside an idx file of ``size`` images, compressed or not: int64 (N,).

    Raises:
        InputError: if there is no such file, or it is damaged or of another length; names it.
    """
    stem = images.name.removesuffix(".gz").replace("images-idx3", "labels-idx1")
    both = [images.with_name(stem), images.with_name(f"{stem}.gz")]
    path = next((path for path in both if path.is_file()), None)
    if path is None:
        missing = f"labels beside the images {images.name}, with or without .gz"
        raise InputError(f"file='{both[0]}': expected {missing}; fetch this file too")
    labels = _read_idx(path, "labels", 1).to(torch.int64)
    require(len(labels) == size, "file", str(path), f"{size} labels, one for each image, not {len(labels)}", _REMEDY)
    return labels


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
        root: a folder with the idx or idx.gz files of images and labels, itself or in ``FashionMNIST/raw``, ``raw``
            or ``fashion-mnist``; Debian's ``dataset-fashion-mnist`` is looked at next, and then torchvision downloads
            into ``root``.

    Raises:
        InputError: if there is no copy and no download, or a file is damaged, or that of the labels is not there.

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
    train, test = (_read_idx(file, "images", 3)[:, None] for file in files)
    known = {CLASSES: (_read_labels(files[0], len(train)), _read_labels(files[1], len(test)))}
    return Dataset("fashion_mnist", train, test, 256, known, _FASHION)


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
        splits = [CIFAR10(str(folder), train=train) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise InputError(f"folder='{batches}': a file is missing or damaged ({error}); {_REMEDY}") from error
    train, test = (torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous() for split in splits)
    known = {CLASSES: (torch.tensor(splits[0].targets), torch.tensor(splits[1].targets))}
    return Dataset("cifar10", train, test, 256, known, _CIFAR10)
