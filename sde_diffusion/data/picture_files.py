"""One picture in a file, as Pillow reads it: upright, on white, in 8 bits; what would be lost of it is refused or told.

Of what there is in files:

    1 bit, palette, grey, colour   read as they are
    transparency                   laid on white, also that of a palette
    CMYK, YCbCr, HSV               converted to RGB by Pillow's formulas, without the file's colour profile
    more than 8 bits a channel     refused: Pillow itself would cut most of them to 8 without a word
    several frames                 the first; the caller is told that there are more
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sde_diffusion.errors import InputError, legible
from sde_diffusion.memory import require_memory
from sde_diffusion.reading import no_file
from sde_diffusion.terminal import notice

if TYPE_CHECKING:
    from PIL import Image

# Pillow registers these, but reads them not at all or through another program (EPS starts Ghostscript).
_NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_LISTED = 20
"""How many files a message names."""
_BYTES = 12
"""Bytes a pixel while a file is read: 4 of what it holds, 4 with transparency, 4 on white."""
_DEEP = r"^[IF]|^L;16|;16[BLNS]|^SGI16|^BC6H"
"""Modes, raw modes and decoders of Pillow with more than 8 bits a channel ("RGB;16" and "BGR;16" are of 5 or 6)."""


@cache
def picture_formats() -> tuple[list[str], frozenset[str]]:
    """Return the formats Pillow may try, and the lower-case file endings that belong to them."""
    from PIL import Image

    endings = Image.registered_extensions()  # also loads the plugins that fill Image.OPEN
    formats = sorted(set(Image.OPEN) - _NOT_PICTURES)
    return formats, frozenset(ending for ending, kind in endings.items() if kind in formats)


def open_picture(path: Path, channels: int) -> tuple[Image.Image, bool]:
    """Read one file, upright, on white, in grey (1 channel) or colour (3); returns it and whether it has more frames.

    Raises:
        InputError: if it is no regular file, too large for memory, or has more than 8 bits a channel.
        Exception: of many kinds, if Pillow cannot read it.
    """
    from PIL import Image, ImageOps

    if problem := no_file(path):
        raise InputError(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # memory is looked at below
        file = Image.open(path, formats=picture_formats()[0])
    with file:
        require_memory("size", f"{file.width}×{file.height}", _BYTES * file.width * file.height, "its pixels")
        if _is_deep(file, path):
            raise InputError("more than 8 bits a channel: convert it to 8")
        more = file.format != "PSD" and bool(getattr(file, "is_animated", False))  # what PSD has are layers
        image = ImageOps.exif_transpose(file)  # a camera stores "held upright" as a tag
        if image.has_transparency_data:  # what hides behind full transparency is arbitrary
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("L" if channels == 1 else "RGB"), more


def _is_deep(file: Any, path: Path) -> bool:
    """Return whether a file that is opened, and not yet decoded, has more than 8 bits a channel."""
    if file.format in ("JPEG2000", "AVIF"):
        return _has_deep_header(path)
    said = [file.mode]
    for codec, _, _, options in file.tile:
        parts = options if isinstance(options, tuple) else (options,)
        if codec in ("ppm", "ppm_plain") and max((p for p in parts if isinstance(p, int)), default=0) > 255:
            return True  # the largest value that a PPM has
        said += [codec, *(part for part in parts if isinstance(part, str))]
    return any(re.search(_DEEP, word) for word in said)


def _has_deep_header(path: Path) -> bool:
    """Return whether the header of a JPEG 2000 codestream or of AV1 says more than 8 bits, which Pillow does not tell.

    References:
        ISO/IEC 15444-1, A.5.1 (SIZ: 40 bytes, then the depth less one of each component, the first bit its sign).
        AV1 Codec ISO Media File Format Binding, 2.3.3 (av1C: the second bit of the third byte is high_bitdepth).
    """
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    sizes, av1 = head.find(b"\xff\x4f\xff\x51"), head.find(b"av1C")
    if sizes >= 0:
        return any((depth & 0x7F) + 1 > 8 for depth in head[sizes + 42 :: 3][: head[sizes + 41]])
    return av1 >= 0 and bool(head[av1 + 6] & 0x40)


def why_not(error: Exception, path: Path) -> str:
    """Say in one line why a file cannot be read, without its path, which the message says once."""
    said = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.replace(f" {str(path)!r}", "").split()) or type(error).__name__


def listed(files: Sequence[str]) -> str:
    """Name the first files and say how many more there are."""
    files = sorted(map(legible, files))
    more = len(files) - _LISTED
    return ", ".join(files[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def load_pictures(files: Sequence[Path], shape: tuple[int, ...]) -> np.ndarray:
    """Read pictures that must have the shape (C, H, W) as they are: uint8 (N, C, H, W), 0 … 255.

    Raises:
        InputError: names all that cannot be read, have another size, or colours where grey is expected.
    """
    found, problems, animated = [], [], []
    for path in files:
        try:
            pixels, more = _pixels(path, shape)
        except Exception as error:  # Pillow's decoders raise many kinds, and only the file's name helps
            problems.append(f"{path} ({why_not(error, path)})")
            continue
        found.append(pixels)
        animated += [str(path)] if more else []
    if problems:
        kind = f"{shape[2]}×{shape[1]} pixels in {'grey' if shape[0] == 1 else 'colour'}"
        raise InputError(
            f"image: expected pictures of {kind}, as the network was trained on; repair, convert or leave out "
            f"{len(problems)} of {len(files)}: {listed(problems)}"
        )
    if animated:
        notice(f"image: of {len(animated)} with several frames, the first is taken: {listed(animated)}")
    return np.stack(found)


def _pixels(path: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, bool]:
    channels, height, width = shape
    image, more = open_picture(path, 3)
    if image.size != (width, height):
        raise InputError(f"it has {image.width}×{image.height} pixels")
    pixels = np.array(image).transpose(2, 0, 1)
    if channels == 1 and not (pixels == pixels[:1]).all():
        raise InputError("it has colours")
    return pixels[:channels], more
