"""A folder of pictures: anything Pillow can read, cropped and resized to one shape."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sde_diffusion.data.base import DATASETS, Dataset, count_test
from sde_diffusion.errors import InputError, require, require_int

if TYPE_CHECKING:
    from PIL import Image

# Pillow registers these, but reads them not at all or through another program (EPS starts Ghostscript).
_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_PROGRESS_FROM = 1000


def _picture_formats() -> tuple[list[str], set[str]]:
    """Return the formats Pillow may try, and the lower-case file endings that belong to them."""
    from PIL import Image

    endings = Image.registered_extensions()  # also loads the plugins that fill Image.OPEN
    formats = sorted(set(Image.OPEN) - _NOT_PICTURES)
    return formats, {ending for ending, kind in endings.items() if kind in formats}


def _open(path: Path, channels: int, formats: list[str]) -> Image.Image:
    """Read one file, upright, on white, in grey (1 channel) or colour (3).

    Raises:
        InputError: if Pillow cannot read it or it has more than 8 bits a channel; names the file.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=formats) as file:
            image = ImageOps.exif_transpose(file)  # a camera stores "held upright" as a tag
            depth = image.mode
            if image.has_transparency_data:  # what hides behind full transparency is arbitrary
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow's decoders raise many kinds, and only the file's name helps
        raise InputError(f"file='{path}': cannot be read as a picture ({error}); repair or remove it") from error
    deep = depth == "F" or depth.startswith("I")
    require(not deep, "file", str(path), f"8 bits a channel, not mode {depth}", "convert it to 8 bits first")
    return image


def _load(path: Path, image_size: int, channels: int, formats: list[str]) -> np.ndarray:
    """Read one file as uint8 (C, H, W), its central square, resized."""
    from PIL import Image

    image = _open(path, channels, formats)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((image_size, image_size), Image.Resampling.LANCZOS)
    return np.array(square).reshape(image_size, image_size, channels).transpose(2, 0, 1)


def load_picture(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read one picture that must have the shape (C, H, W) as it is: uint8, 0 … 255.

    Raises:
        InputError: if it cannot be read, has another size, or colours where grey is expected.
    """
    channels, height, width = shape
    image = _open(path, 3, _picture_formats()[0])
    expected = f"{width}×{height} pixels, as the network was trained on"
    require(image.size == (width, height), "file", str(path), expected, f"it has {image.width}×{image.height}")
    pixels = np.array(image).transpose(2, 0, 1)
    if channels == 1:
        grey = bool((pixels == pixels[:1]).all())
        require(grey, "file", str(path), "a grey picture (1 channel)", "it has colours; convert it first")
    return pixels[:channels]


@DATASETS.register("image_folder")
def image_folder(
    root: str = "", image_size: int = 32, channels: int = 3, test_fraction: float = 0.1, quiet: bool = False
) -> Dataset:
    """All pictures in a folder and its subfolders, cropped to the central square and resized (Lanczos, antialiased).

    A picture's split depends on a hash of its path relative to ``root``, so it is the same on every machine and hardly
    changes when pictures are added. Transparency is laid on white. Files whose ending is no picture's and hidden files
    are passed over.

    Args:
        root: the folder.
        image_size: height and width afterwards, pixels.
        channels: 1 for grey or 3 for RGB.
        test_fraction: share of the pictures held out, in (0, 1).
        quiet: no progress bar on stderr (without it there is one from 1000 files, on a terminal).

    Raises:
        InputError: on a missing or empty folder, an unreadable file, or an option out of range.
    """
    require(isinstance(root, str) and root != "", "root", root, "a folder of pictures")
    require_int("image_size", image_size, 1)
    require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (RGB)")
    folder = Path(root).expanduser()
    require(folder.is_dir(), "root", root, "an existing folder of pictures")

    formats, endings = _picture_formats()
    found = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix.lower() in endings and not path.name.startswith(".") and path.is_file()
    }
    names = sorted(found)
    require(len(names) > 0, "root", root, "pictures in it or in its subfolders, such as .png or .jpg files")
    num_test = count_test(len(names), test_fraction, f"root='{root}'")
    held_out = set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:num_test])

    from tqdm import tqdm

    silent = True if quiet or len(names) < _PROGRESS_FROM else None  # None: only on a terminal
    images = torch.empty(len(names), channels, image_size, image_size, dtype=torch.uint8)
    for i, name in enumerate(tqdm(names, desc="reading pictures", unit="file", disable=silent)):
        images[i] = torch.from_numpy(_load(found[name], image_size, channels, formats))
    test = torch.tensor([name in held_out for name in names])
    return Dataset("image_folder", images[~test], images[test], levels=256)
