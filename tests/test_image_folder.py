"""Folders of pictures as people have them: links, odd names, broken files, depth, frames; nothing is lost unsaid."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from sde_diffusion.commands.main import main
from sde_diffusion.data import DATASETS, Dataset
from sde_diffusion.data.picture_files import _has_deep_header, load_pictures
from sde_diffusion.errors import InputError
from sde_diffusion.records import read_record
from tests.test_commands import refused as refused_command
from tests.test_commands import trained
from tests.test_training import SMALL

__all__ = ["trained"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="names of bytes, links and pipes are those of POSIX")


def draw(path: Path, red: int = 200, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (red, 0, 0)).save(path, **options)
    return path


def read(folder: Path, **options: Any) -> Dataset:
    return DATASETS.build("image_folder", root=str(folder), image_size=4, test_fraction=0.5, **options)


def reds(data: Dataset) -> list[int]:
    return sorted(int(red) for split in (data.train, data.test) for red in split[:, 0, 0, 0])


@contextmanager
def refused(*words: str) -> Iterator[None]:
    with pytest.raises(InputError) as caught:
        yield
    assert "\n" not in str(caught.value)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"


# --- links ----------------------------------------------------------------------------------------------------------


@posix
def test_links_are_followed_once(tmp_path: Path) -> None:
    """To a folder elsewhere, to the parent, to each other, two to one folder, two to one file."""
    draw(tmp_path / "elsewhere" / "deep" / "a.png", 10)
    single = draw(tmp_path / "single.png", 20)
    root = tmp_path / "root"
    draw(root / "own" / "b.png", 30)
    for name, target in {
        "far": tmp_path / "elsewhere",
        "far too": tmp_path / "elsewhere" / "deep",
        "own/up": root,
        "own/other": root / "own",
        "own/c.png": single,
        "own/d.png": single,
        "own/e.png": root / "own" / "b.png",
    }.items():
        (root / name).symlink_to(target)
    data = read(root)
    assert reds(data) == [10, 20, 30]
    assert data.class_names == ("far", "own")


@posix
def test_what_lies_in_the_folder_goes_before_a_link_to_it(tmp_path: Path) -> None:
    """So that the class is the folder's, whatever the names."""
    draw(tmp_path / "zebra" / "a.png", 10)
    draw(tmp_path / "yak" / "a.png", 20)
    (tmp_path / "ant").symlink_to(tmp_path / "zebra")
    assert read(tmp_path).class_names == ("yak", "zebra")


@posix
def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 10)
    draw(tmp_path / "b.png", 20)
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "one").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "one")
    (tmp_path / ".#lock").symlink_to("hidden")
    with refused("gone (a link that leads nowhere: No such file", "one (a link", "other (a link", "symbolic links"):
        read(tmp_path)
    assert reds(read(tmp_path, skip_broken=True)) == [10, 20]


# --- names ----------------------------------------------------------------------------------------------------------


@posix
def test_names_of_any_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of folders too, which are classes; all that is stored of them is UTF-8, and a message shows them."""
    root = os.fsencode(tmp_path / "pictures")
    for i, name in enumerate((b"gr\xfcn/a.png", b"gr\xfcn/\xff\n.png", b"rot/b.png", b"rot/c\\d.png")):
        path = os.path.join(root, name)
        draw(Path(os.fsdecode(path)), 10 * (i + 1))
    data = read(tmp_path / "pictures")
    assert reds(data) == [10, 20, 30, 40]
    assert data.class_names == ("gr\\xfcn", "rot")
    place = Path(os.fsdecode(root + b"\xe4"))
    (tmp_path / "pictures").rename(place)
    flags = [
        "--config.data.name=image_folder",
        f"--config.data.root={place}",
        "--config.data.image_folder.image_size=4",
    ]
    small = [*SMALL, "--config.training.num_steps=1", "--config.data.image_folder.test_fraction=0.5"]
    assert main(["train", f"--workdir={tmp_path / 'run'}", *flags, *small]) == 0
    assert read_record(tmp_path / "run" / "config.json")["config"]["data"]["root"] == str(place)
    assert main(["likelihood", f"--workdir={tmp_path / 'run'}", "--tolerance=0.5", "--quiet", "--device=cpu"]) == 0
    Path(os.fsdecode(os.path.join(os.fsencode(place), b"rot/\xfe.png"))).write_text("no picture")
    with refused(r"rot/\xfe.png (cannot identify image file)"):
        read(place)


@posix
def test_the_split_of_ordinary_names_is_that_of_before(tmp_path: Path) -> None:
    """By the SHA-256 of the UTF-8 of the path, of which the smallest are held out."""
    import hashlib

    names = ["a.png", "ü.png", "deep/é b.png", "deep/z.png"]
    for i, name in enumerate(names):
        draw(tmp_path / name, 10 * i)
    by_hash = sorted(range(4), key=lambda i: hashlib.sha256(names[i].encode()).digest())
    assert sorted(int(x[0, 0, 0]) for x in read(tmp_path).test) == sorted(10 * i for i in by_hash[:2])


# --- what cannot be read ----------------------------------------------------------------------------------------------


@posix
def test_all_that_is_broken_is_named_and_may_be_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        draw(tmp_path / f"{i}.png", 10 * i)
    (tmp_path / "text.png").write_text("no picture at all")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "cut.png").write_bytes((tmp_path / "0.png").read_bytes()[:45])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with refused(
        "expected pictures that can be read; repair or remove cut.png (image file is truncated), "
        "empty.jpg (cannot identify image file), pipe.png (it is a named pipe, not a file), text.png (cannot identify "
        "image file), zero.png (it is a device, not a file), or give --config.data.image_folder.skip_broken=True"
    ):
        read(tmp_path)
    data = read(tmp_path, skip_broken=True)
    assert reds(data) == [0, 10, 20, 30]
    assert data.note == "central crops, resized to 4×4, 5 that cannot be read skipped"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "5 skipped, for they cannot be read: cut.png (image file is truncated), empty.jpg" in said
    with refused("skip_broken=1: expected True or False"):
        read(tmp_path, skip_broken=1)
    for i in range(4):
        (tmp_path / f"{i}.png").unlink()
    with refused("expected pictures that can be read"):
        read(tmp_path, skip_broken=True)


def test_of_a_class_whose_pictures_are_all_broken_nothing_is_left(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        draw(tmp_path / name, 10)
    (tmp_path / "b" / "1.png").write_bytes(b"broken")
    assert read(tmp_path, skip_broken=True).class_names == ("a",)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.png", 10)
    draw(tmp_path / "b.png", 20)
    draw(tmp_path / "closed" / "c.png", 30)
    scandir = os.scandir

    def guarded(path: Path) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", guarded)
    with refused("closed (Permission denied)"):
        read(tmp_path)
    assert reds(read(tmp_path, skip_broken=True)) == [10, 20]


def png(path: Path, width: int, height: int, depth: int = 8, colour: int = 0, pixels: bytes = b"") -> Path:
    """Write a PNG by hand: its header may claim what is not there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


def test_a_picture_that_claims_to_be_huge_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    png(tmp_path / "bomb.png", 60_000, 60_000)
    draw(tmp_path / "a.png")
    with refused("bomb.png (Image size (3600000000 pixels) exceeds limit"):
        read(tmp_path)
    png(tmp_path / "bomb.png", 10_000, 10_000)
    monkeypatch.setattr("sde_diffusion.memory.available", lambda device="cpu": 1e9)  # 1.2 GB would be needed
    with refused("bomb.png (size='10000×10000': expected what fits"):
        read(tmp_path)
    with refused("image_size=(100000, 100000): expected what fits"):
        DATASETS.build("image_folder", root=str(tmp_path), image_size=100_000)


# --- depth and frames -------------------------------------------------------------------------------------------------

CHANNELS = {"L": (0, 1), "RGB": (2, 3), "LA": (4, 2), "RGBA": (6, 4)}


@pytest.mark.parametrize("mode", CHANNELS)
@pytest.mark.parametrize("depth", [8, 16])
def test_png_of_16_bits_is_refused_in_every_mode(tmp_path: Path, mode: str, depth: int) -> None:
    colour, count = CHANNELS[mode]
    pixels = (b"\0" + b"\x7f" * (4 * count * depth // 8)) * 4
    path = png(tmp_path / "a.png", 4, 4, depth, colour, pixels)
    if depth == 16:
        with refused("a.png (more than 8 bits a channel: convert it to 8)"):
            load_pictures([path], (3, 4, 4))
    else:  # half transparent: half white
        grey = 0x7F if "A" not in mode else round(255 - 128 * 0x7F / 255)
        assert np.abs(load_pictures([path], (3, 4, 4)).astype(int) - grey).max() <= 1


def tiff(path: Path, samples: int, bits: int = 16) -> Path:
    """Write a TIFF by hand, without compression: little-endian, one strip, 4×4."""
    count = 4 * 4 * samples * bits // 8
    extra = [(338, 3, 1, 2)] if samples == 4 else []
    tags = [
        *((256, 3, 1, 4), (257, 3, 1, 4), (258, 3, samples, 0), (259, 3, 1, 1), (262, 3, 1, 2 if samples > 1 else 1)),
        *((273, 4, 1, 0), (277, 3, 1, samples), (278, 3, 1, 4), (279, 4, 1, count), *extra),
    ]
    depths = 8 + 2 + 12 * len(tags) + 4
    start = depths + 2 * samples
    values = {258: bits if samples == 1 else depths if samples > 2 else bits | bits << 16, 273: start}
    entries = b"".join(struct.pack("<HHII", t, kind, n, values.get(t, value)) for t, kind, n, value in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    path.write_bytes(head + entries + struct.pack("<I", 0) + struct.pack("<H", bits) * samples + b"\x40" * count)
    return path


def deep_files(folder: Path) -> Iterator[Path]:
    yield tiff(folder / "grey.tif", 1)
    yield tiff(folder / "colour.tif", 3)
    yield tiff(folder / "alpha.tif", 4)
    for kind, mode in (("I", np.int32), ("F", np.float32)):
        Image.fromarray(np.zeros((4, 4), mode)).save(folder / f"{kind}.tif")
        yield folder / f"{kind}.tif"
    for magic, maximum, count in ((b"P5", 65535, 1), (b"P6", 65535, 3), (b"P6", 1023, 3), (b"P5", 4095, 1)):
        path = folder / f"{magic.decode()}_{maximum}.{'ppm' if count == 3 else 'pgm'}"
        path.write_bytes(b"%s 4 4 %d\n" % (magic, maximum) + b"\0\x40" * 16 * count)
        yield path
    path = folder / "plain.ppm"
    path.write_bytes(b"P3 4 4 65535\n" + b"9 " * 48)
    yield path
    if features.check("jpg_2000"):
        Image.fromarray(np.zeros((4, 4), np.uint16)).save(folder / "grey.jp2")
        yield folder / "grey.jp2"
        colour = draw(folder / "colour.j2k").read_bytes()
        at = colour.find(b"\xff\x4f\xff\x51") + 42  # the depths of three components, less one
        changed = bytearray(colour)
        changed[at : at + 9 : 3] = b"\x0f" * 3
        (folder / "colour.j2k").write_bytes(bytes(changed))
        yield folder / "colour.j2k"


def test_depth_is_never_cut_without_a_word(tmp_path: Path) -> None:
    for path in deep_files(tmp_path):
        with refused(f"{path} (more than 8 bits a channel: convert it to 8)"):
            load_pictures([path], (3, 4, 4))


@pytest.mark.parametrize(("configuration", "deep"), [(b"\x81\x00\x0c\x00", False), (b"\x81\x00\x4c\x00", True)])
def test_the_depth_of_av1(tmp_path: Path, configuration: bytes, deep: bool) -> None:
    """Pillow writes none of 10 bits: the header alone, 4:2:0 of 8 and of 10 bits."""
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x0cav1C" + configuration)
    assert _has_deep_header(tmp_path / "a.avif") is deep


@pytest.mark.parametrize("kind", ["png", "tif", "ppm", "pgm", "jp2", "avif", "jpg", "webp", "gif", "bmp", "tga", "sgi"])
def test_8_bits_are_read(tmp_path: Path, kind: str) -> None:
    if not features.check({"jp2": "jpg_2000", "avif": "avif", "webp": "webp"}.get(kind, "zlib")):
        pytest.skip("not in this build of Pillow")
    Image.new("L", (4, 4), 100).convert("L" if kind == "pgm" else "RGB").save(tmp_path / f"a.{kind}")
    found = load_pictures([tmp_path / f"a.{kind}"], (1, 4, 4))
    assert np.abs(found.astype(int) - 100).max() <= 3  # as the lossy ones have it


@pytest.mark.parametrize(
    ("mode", "kind"), [("1", "png"), ("P", "png"), ("LA", "png"), ("CMYK", "tif"), ("YCbCr", "tif")]
)
def test_modes_become_rgb(tmp_path: Path, mode: str, kind: str) -> None:
    Image.new("RGB", (4, 4), "white").convert(mode).save(tmp_path / f"a.{kind}")
    assert (load_pictures([tmp_path / f"a.{kind}"], (3, 4, 4)) == 255).all()


def test_a_transparent_palette_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "a.png", transparency=1)
    assert (load_pictures([tmp_path / "a.png"], (3, 4, 4)) == 255).all()


def animated(path: Path, frames: int = 3) -> Path:
    first, *rest = [Image.new("RGB", (4, 4), (80 * i, 0, 0)) for i in range(frames)]
    first.save(path, save_all=True, append_images=rest)
    return path


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif", "avif"])
def test_frames_are_told(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not features.check({"avif": "avif", "webp": "webp"}.get(kind, "zlib")):
        pytest.skip("not in this build of Pillow")
    path = animated(tmp_path / f"a.{kind}")
    draw(tmp_path / "b.png", 200)
    data = read(tmp_path)
    assert min(reds(data)) < 10  # the first
    assert data.note == "central crops, resized to 4×4, of 1 with several frames the first"
    capsys.readouterr()
    load_pictures([path], (3, 4, 4))
    assert capsys.readouterr().err == f"sde-diffusion: image: of 1 with several frames, the first is taken: {path}\n"


# --- pictures given one by one ----------------------------------------------------------------------------------------


@posix
def test_all_given_pictures_that_do_not_fit_are_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / name for name in ("grey.png", "wide.png", "red.png", "text.png", "none.png", "pipe.png")]
    Image.new("L", (8, 8)).save(files[0])
    Image.new("L", (9, 8)).save(files[1])
    Image.new("RGB", (8, 8), (255, 0, 0)).save(files[2])
    files[3].write_text("no picture")
    os.mkfifo(files[5])
    text = refused_command(capsys, "likelihood", f"--workdir={trained}", *[f"--image={file}" for file in files])
    assert "expected pictures of 8×8 pixels in grey" in text
    assert "5 of 6" in text
    assert str(files[0]) not in text
    for file, why in zip(
        files[1:],
        ("9×8 pixels", "it has colours", "cannot identify", "there is no such file", "it is a named pipe"),
        strict=True,
    ):
        assert f"{file} (" in text
        assert why in text
