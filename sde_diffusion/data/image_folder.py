"""A folder of pictures: anything Pillow can read, brought to one shape; its subfolders can be splits and classes."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.base import CLASSES, DATASETS, Dataset, count_test
from sde_diffusion.data.picture_files import listed, open_picture, picture_formats, why_not
from sde_diffusion.errors import legible, require
from sde_diffusion.memory import require_memory
from sde_diffusion.terminal import notice, progress

if TYPE_CHECKING:
    from PIL import Image

_PROGRESS_FROM = 1000
_FITS = {
    "crop": "central crops, resized to {}",
    "pad": "whole pictures, resized to fit into {} on white",
    "stretch": "whole pictures, stretched to {}",
    "none": "pictures of {} as they are",
}
"""How a picture is brought to its shape, and how that is told."""


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


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Return the height and width in pixels of an option ``image_size``: one number, or (height, width).

    Raises:
        InputError: unless it is one or two whole numbers of at least 1.
    """
    both = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    ok = len(both) == 2 and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in both)
    require(ok, "image_size", image_size, "a whole number of at least 1, or two: (height, width)")
    return both[0], both[1]


def _find(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the paths of all pictures relative to the folder, "/" between their parts, and of others why they are not.

    Links are followed when all else is seen: what several lead to, or what lies here anyway, is met once. The paths are
    in the order of a hash, so that the first so many are of all kinds, in whatever folders they lie.
    """
    endings = picture_formats()[1]
    names, broken, seen = [], {}, set()
    folders: list[str] = []
    links: deque[str] = deque()

    def meet(name: str, linked: bool) -> None:
        try:
            status = os.stat(folder / name)
        except OSError as error:
            broken[name] = f"a link that leads nowhere: {error.strerror}" if linked else str(error.strerror)
            return
        identity = (status.st_dev, status.st_ino)
        if linked and identity in seen:
            return
        seen.add(identity)
        if stat.S_ISDIR(status.st_mode):
            folders.append(name)
        elif os.path.splitext(name)[1].lower() in endings:
            names.append(name)  # a pipe or a device too, which its reader refuses

    meet("", linked=False)
    while folders or links:
        if not folders:
            meet(links.popleft(), linked=True)
            continue
        inside = folders.pop()
        try:
            entries = sorted(os.scandir(folder / inside), key=lambda entry: entry.name)
        except OSError as error:
            broken[inside or "."] = str(error.strerror)
            continue
        for entry in entries:
            name = f"{inside}/{entry.name}".removeprefix("/")
            if entry.name.startswith("."):
                continue
            links.append(name) if entry.is_symlink() else meet(name, linked=False)
    return sorted(names, key=_hash), broken


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class _Read:
    """What was read of a folder.

    Attributes:
        images: uint8 (N, C, H, W).
        names: of these.
        skipped: what could not be read, each with its reason.
        animated: how many have several frames.
    """

    images: Tensor
    names: list[str]
    skipped: list[str]
    animated: int


def _read(
    root: str, names: list[str], broken: dict[str, str], shape: tuple[int, int, int], fit: str, skip: bool, quiet: bool
) -> _Read:
    """Read all pictures and bring them to one shape (C, H, W).

    Raises:
        InputError: names all that cannot be read, unless these are to be skipped and some are left, or else, with
            ``fit="none"``, all of another size; or if they do not fit into memory.
    """
    channels, height, width = shape
    folder, broken = Path(root).expanduser(), dict(broken)
    size = 2 * len(names) * channels * height * width  # once as they are read, once in their splits
    require_memory("image_size", (height, width), size, f"{len(names)} pictures", "take smaller ones")
    images = torch.empty(len(names), *shape, dtype=torch.uint8)
    kept: list[str] = []
    others, animated = [], 0
    bar = progress(len(names), "file", "reading pictures", quiet or len(names) < _PROGRESS_FROM)
    for name in names:
        bar.update()
        try:
            image, more = open_picture(folder / name, channels)
        except Exception as error:  # Pillow's decoders raise many kinds, and only the file's name helps
            broken[name] = why_not(error, folder / name)
            continue
        if fit == "none" and image.size != (width, height):
            others.append(f"{name} ({image.height}×{image.width})")
            continue
        pixels = np.array(_fitted(image, height, width, fit)).reshape(height, width, channels)
        images[len(kept)] = torch.from_numpy(pixels.transpose(2, 0, 1))
        kept.append(name)
        animated += more
    bar.close()
    skipped = [f"{name} ({reason})" for name, reason in broken.items()]
    remedy = f"repair or remove {listed(skipped)}" + (
        "" if skip else ", or give --config.data.image_folder.skip_broken=True"
    )
    require(not skipped or (skip and len(kept) > 0), "root", root, "pictures that can be read", remedy)
    expected = f"only pictures of {height}×{width} pixels (height×width), not {listed(others)}"
    require(not others, "fit", fit, expected, "resize these, or let fit be crop, pad or stretch")
    return _Read(images[: len(kept)], kept, skipped, animated)


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
    return torch.tensor([number[folder] for folder in folders]), tuple(map(legible, class_names))


def _divided(names: list[str]) -> bool:
    """Return whether the folders of the first level are the splits."""
    return {name.partition("/")[0] for name in names} == {"train", "test"}


def _arranged(names: list[str], test_fraction: float, root: str) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """Return which pictures are held out, (N,) bool, their classes, int64 (N,), and the names of these, if there are.

    Raises:
        InputError: if there are too few, folders of three splits, or a class is only in ``test``.
    """
    require(len(names) > 0, "root", root, "pictures in it or in its subfolders, such as .png or .jpg files")
    tops, divided = {name.partition("/")[0] for name in names}, _divided(names)
    splits = {"train", "test", "val", "valid", "validation"}
    expected = "train and test alone, as splits, or folders that are classes"
    require(divided or "train" not in tops or not tops <= splits, "root", root, expected, f"it has {sorted(tops)}")
    by_folder = torch.tensor([name.startswith("test/") for name in names])
    test = by_folder if divided else _held_out(names, test_fraction, root)
    classes, class_names = _classes([name.partition("/")[2] if divided else name for name in names])
    if classes is not None and divided:
        alone = sorted({class_names[c] for c in classes[test]} - {class_names[c] for c in classes[~test]})
        require(not alone, "root", root, "every class of test in train", f"only in test: {', '.join(alone)}")
    return test, classes, class_names


@DATASETS.register("image_folder")
def image_folder(
    root: str = "",
    image_size: int | tuple[int, int] = 32,
    channels: int = 3,
    test_fraction: float = 0.1,
    quiet: bool = False,
    fit: str = "crop",
    skip_broken: bool = False,
) -> Dataset:
    """All pictures in a folder and its subfolders, brought to one shape (by Lanczos, antialiased).

    If the first level is exactly the folders ``train`` and ``test``, these are the splits. Else a picture's split
    depends on a hash of its path relative to ``root``, so it is the same on every machine and hardly changes when
    pictures are added. If every picture lies in a subfolder (of ``train`` and ``test``, if these are the splits), the
    first-level ones are the classes, in alphabetical order. Files whose ending is no picture's and what is hidden are
    passed over. Links are followed, and what several lead to is read once. What becomes of transparency, palettes,
    CMYK, depth and frames says :mod:`sde_diffusion.data.picture_files`.

    Args:
        root: the folder.
        image_size: height and width afterwards, pixels: one number for both, or (height, width).
        channels: 1 for grey or 3 for RGB.
        test_fraction: share of the pictures held out, in (0, 1), unless folders say which are.
        quiet: no progress bar on stderr (without it there is one from 1000 files).
        fit: "crop": the largest central part of the wanted aspect ratio, resized; "pad": the whole picture, resized to
            fit inside, with white around; "stretch": the whole picture, resized whatever its aspect ratio; "none": as
            it is, and all must have exactly ``image_size``.
        skip_broken: leave out what cannot be read, and say how many and which; else one of them stops all.

    Raises:
        InputError: on a missing or empty folder, unreadable files (all are named), files of another size than
            ``fit="none"`` allows, a class that is only in ``test``, or an option out of range.
    """
    require(isinstance(root, str) and root != "", "root", root, "a folder of pictures")
    height, width = height_and_width(image_size)
    require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (RGB)")
    require(fit in _FITS, "fit", fit, f"one of {', '.join(_FITS)}")
    require(isinstance(skip_broken, bool), "skip_broken", skip_broken, "True or False")
    folder = Path(root).expanduser()
    require(folder.is_dir(), "root", root, "an existing folder of pictures")
    names, broken = _find(folder)
    if not broken:
        _arranged(names, test_fraction, root)  # what is wrong with the folders is told before all is read
    read = _read(root, names, broken, (channels, height, width), fit, skip_broken, quiet)
    test, classes, class_names = _arranged(read.names, test_fraction, root)
    known = {} if classes is None else {CLASSES: (classes[~test], classes[test])}
    note = _FITS[fit].format(f"{height}×{width}") + (", split by folder" if _divided(read.names) else "")
    if read.animated:
        note += f", of {read.animated} with several frames the first"
    if read.skipped:
        note += f", {len(read.skipped)} that cannot be read skipped"
        notice(f"root={legible(root)!r}: {len(read.skipped)} skipped, for they cannot be read: {listed(read.skipped)}")
    return Dataset("image_folder", read.images[~test], read.images[test], 256, known, class_names, note=note)
