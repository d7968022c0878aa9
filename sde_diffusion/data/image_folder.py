"""A folder of pictures: anything Pillow can read, brought to one shape; its subfolders can be splits and classes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.base import CLASSES, DATASETS, Dataset, count_test
from sde_diffusion.errors import InputError, require
from sde_diffusion.memory import require_memory
from sde_diffusion.terminal import progress

if TYPE_CHECKING:
    from PIL import Image

# Pillow registers these, but reads them not at all or through another program (EPS starts Ghostscript).
_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_PROGRESS_FROM = 1000
_LISTED = 20
"""How many files a message names."""
_FITS = {
    "crop": "central crops, resized to {}",
    "pad": "whole pictures, resized to fit into {} on white",
    "stretch": "whole pictures, stretched to {}",
    "none": "pictures of {} as they are",
}
"""How a picture is brought to its shape, and how that is told."""


def _picture_formats() -> tuple[list[str], set[str]]:
    """Return the formats Pillow may try, and the lower-case file endings that belong to them."""
    from PIL import Image

    endings = Image.registered_extensions()  # also loads the plugins that fill Image.OPEN
    formats = sorted(set(Image.OPEN) - _NOT_PICTURES)
    return formats, {ending for ending, kind in endings.items() if kind in formats}


def _open(path: Path, channels: int, formats: list[str]) -> Image.Image:
    """Read one file, upright, on white, in grey (1 channel) or colour (3).

    Raises:
        Exception: of many kinds, if Pillow cannot read it.
        InputError: if it has more than 8 bits a channel.
    """
    from PIL import Image, ImageOps

    with Image.open(path, formats=formats) as file:
        image = ImageOps.exif_transpose(file)  # a camera stores "held upright" as a tag
        depth = image.mode
        if depth == "F" or depth.startswith("I"):
            raise InputError(f"mode {depth} is more than 8 bits a channel: convert it")
        if image.has_transparency_data:  # what hides behind full transparency is arbitrary
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("L" if channels == 1 else "RGB")


def _reason(error: Exception, path: Path) -> str:
    """Say in one line why a file cannot be read, without its path, which the message says once."""
    return " ".join(str(error).replace(f" {str(path)!r}", "").split())


def _fitted(image: Image.Image, height: int, width: int, fit: str) -> Image.Image:
    """Bring a picture to ``height`` × ``width``, by Lanczos where its size changes; see :func:`image_folder`."""
    from PIL import Image

    if fit == "none":
        return image
    if fit == "crop":
        wide = image.width * height >= image.height * width
        across = max(1, round(image.height * width / height)) if wide else image.width
        down = image.height if wide else max(1, round(image.width * height / width))
        left, top = (image.width - across) // 2, (image.height - down) // 2
        image = image.crop((left, top, left + across, top + down))
    if fit != "pad":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    scale = min(width / image.width, height / image.height)
    across, down = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new(image.mode, (width, height), "white")
    canvas.paste(image.resize((across, down), Image.Resampling.LANCZOS), ((width - across) // 2, (height - down) // 2))
    return canvas


def load_picture(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read one picture that must have the shape (C, H, W) as it is: uint8, 0 … 255.

    Raises:
        InputError: if it cannot be read, has another size, or colours where grey is expected.
    """
    channels, height, width = shape
    try:
        image = _open(path, 3, _picture_formats()[0])
    except Exception as error:  # Pillow's decoders raise many kinds, and only the file's name helps
        reason = _reason(error, path)
        raise InputError(f"file='{path}': cannot be read as a picture ({reason}); repair or remove it") from error
    expected = f"{width}×{height} pixels, as the network was trained on"
    require(image.size == (width, height), "file", str(path), expected, f"it has {image.width}×{image.height}")
    pixels = np.array(image).transpose(2, 0, 1)
    if channels == 1:
        grey = bool((pixels == pixels[:1]).all())
        require(grey, "file", str(path), "a grey picture (1 channel)", "it has colours; convert it first")
    return pixels[:channels]


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return the height and width in pixels of an option ``image_size``: one number, or (height, width).

    Raises:
        InputError: unless it is one or two whole numbers of at least 1.
    """
    both = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    ok = len(both) == 2 and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in both)
    require(ok, "image_size", image_size, "a whole number of at least 1, or two: (height, width)")
    return both[0], both[1]


def _listed(files: list[str]) -> str:
    """Name the first files and say how many more there are."""
    files = sorted(files)
    more = len(files) - _LISTED
    return ", ".join(files[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _find(folder: Path) -> list[str]:
    """Return the paths of all pictures, relative to the folder, "/" between their parts.

    They are in the order of a hash, so that the first so many are of all kinds, in whatever folders they lie.
    """
    endings = _picture_formats()[1]
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in endings and path.is_file()
    ]
    return sorted((name for name in names if not any(part.startswith(".") for part in name.split("/"))), key=_hash)


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _read(root: str, names: list[str], shape: tuple[int, int, int], fit: str, quiet: bool) -> Tensor:
    """Read all pictures and bring them to one shape (C, H, W): uint8 (N, C, H, W).

    Raises:
        InputError: names all files that cannot be read, or else, with ``fit="none"``, all of another size.
    """
    channels, height, width = shape
    folder, formats = Path(root).expanduser(), _picture_formats()[0]
    require_memory("image_size", (height, width), len(names) * math.prod(shape), "take smaller ones")
    images = torch.empty(len(names), *shape, dtype=torch.uint8)
    unreadable, others = [], []
    bar = progress(len(names), "file", "reading pictures", quiet or len(names) < _PROGRESS_FROM)
    for i, name in enumerate(names):
        bar.update()
        try:
            image = _open(folder / name, channels, formats)
        except Exception as error:  # Pillow's decoders raise many kinds, and only the file's name helps
            unreadable.append(f"{name} ({_reason(error, folder / name)})")
            continue
        if fit == "none" and image.size != (width, height):
            others.append(f"{name} ({image.height}×{image.width})")
            continue
        pixels = np.array(_fitted(image, height, width, fit)).reshape(height, width, channels)
        images[i] = torch.from_numpy(pixels.transpose(2, 0, 1))
    bar.close()
    require(not unreadable, "root", root, "pictures that can be read", f"repair or remove {_listed(unreadable)}")
    expected = f"only pictures of {height}×{width} pixels (height×width), not {_listed(others)}"
    require(not others, "fit", fit, expected, "resize these, or let fit be crop, pad or stretch")
    return images


def _held_out(names: list[str], test_fraction: float, root: str) -> Tensor:
    """Return which pictures are held out by a hash of their paths, (N,) bool."""
    num_test = count_test(len(names), test_fraction, f"root='{root}'")
    held_out = set(sorted(names, key=_hash)[:num_test])
    return torch.tensor([name in held_out for name in names])


def _classes(names: list[str]) -> tuple[Tensor | None, tuple[str, ...]]:
    """Return the classes of pictures by their first folders, int64 (N,), and these; none if one lies in no folder."""
    if not all("/" in name for name in names):
        return None, ()
    folders = [name.partition("/")[0] for name in names]
    class_names = sorted(set(folders))
    number = {name: i for i, name in enumerate(class_names)}
    return torch.tensor([number[folder] for folder in folders]), tuple(class_names)


@DATASETS.register("image_folder")
def image_folder(
    root: str = "",
    image_size: int | tuple[int, int] = 32,
    channels: int = 3,
    test_fraction: float = 0.1,
    quiet: bool = False,
    fit: str = "crop",
) -> Dataset:
    """All pictures in a folder and its subfolders, brought to one shape (by Lanczos, antialiased).

    If the first level is exactly the folders ``train`` and ``test``, these are the splits. Else a picture's split
    depends on a hash of its path relative to ``root``, so it is the same on every machine and hardly changes when
    pictures are added. If every picture lies in a subfolder (of ``train`` and ``test``, if these are the splits), the
    first-level ones are the classes, in alphabetical order. Transparency is laid on white. Files whose ending is no
    picture's and what is hidden are passed over.

    Args:
        root: the folder.
        image_size: height and width afterwards, pixels: one number for both, or (height, width).
        channels: 1 for grey or 3 for RGB.
        test_fraction: share of the pictures held out, in (0, 1), unless folders say which are.
        quiet: no progress bar on stderr (without it there is one from 1000 files).
        fit: "crop": the largest central part of the wanted aspect ratio, resized; "pad": the whole picture, resized to
            fit inside, with white around; "stretch": the whole picture, resized whatever its aspect ratio; "none": as
            it is, and all must have exactly ``image_size``.

    Raises:
        InputError: on a missing or empty folder, unreadable files, files of another size than ``fit="none"`` allows, a
            class that is only in ``test``, or an option out of range.
    """
    require(isinstance(root, str) and root != "", "root", root, "a folder of pictures")
    height, width = height_and_width(image_size)
    require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (RGB)")
    require(fit in _FITS, "fit", fit, f"one of {', '.join(_FITS)}")
    folder = Path(root).expanduser()
    require(folder.is_dir(), "root", root, "an existing folder of pictures")
    names = _find(folder)
    require(len(names) > 0, "root", root, "pictures in it or in its subfolders, such as .png or .jpg files")

    tops = {name.partition("/")[0] for name in names}
    divided = tops == {"train", "test"}
    splits = {"train", "test", "val", "valid", "validation"}
    expected = "train and test alone, as splits, or folders that are classes"
    require(divided or "train" not in tops or not tops <= splits, "root", root, expected, f"it has {sorted(tops)}")
    by_folder = torch.tensor([name.startswith("test/") for name in names])
    test = by_folder if divided else _held_out(names, test_fraction, root)
    classes, class_names = _classes([name.partition("/")[2] if divided else name for name in names])
    known = {} if classes is None else {CLASSES: (classes[~test], classes[test])}
    if classes is not None and divided:
        alone = sorted({class_names[c] for c in classes[test]} - {class_names[c] for c in classes[~test]})
        require(not alone, "root", root, "every class of test in train", f"only in test: {', '.join(alone)}")
    images = _read(root, names, (channels, height, width), fit, quiet)
    note = _FITS[fit].format(f"{height}×{width}") + (", split by folder" if divided else "")
    return Dataset("image_folder", images[~test], images[test], 256, known, class_names, note=note)
