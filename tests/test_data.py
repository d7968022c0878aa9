"""Data sets: values, splits, scaling, every local layout, exact resumption, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

from sde_diffusion.data import DATASETS, Dataset, Examples, torchvision_sets, train_batch
from sde_diffusion.data.base import _epoch_order
from sde_diffusion.data.image_folder import height_and_width
from sde_diffusion.data.npz import read_rows
from sde_diffusion.data.picture_files import load_pictures
from sde_diffusion.errors import InputError

TOYS = ["mixture", "swiss_roll", "two_moons"]
IMAGES = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
VECTORS = torch.zeros(3, 2)


def refused(*words: str) -> Any:
    """Expect an InputError of one line in which all the words occur."""

    def check(error: BaseException) -> bool:
        message = str(error)
        missing = [word for word in words if word not in message]
        assert not missing, f"{missing} not in {message!r}"
        assert "\n" not in message
        return True

    return pytest.raises(InputError, check=check)


def grey_ramp(levels: int) -> Dataset:
    """Every level once, as 1×1 images."""
    k = torch.arange(levels, dtype=torch.uint8).reshape(-1, 1, 1, 1)
    return Dataset("ramp", k, k.clone(), levels=levels)


# Digits


def test_digits_are_sklearns_split_once_and_for_all() -> None:
    from sklearn.datasets import load_digits

    images, target = load_digits().images, load_digits().target
    order = np.random.default_rng(0).permutation(1797)
    digits = DATASETS.build("digits")
    assert digits.levels == 17
    assert digits.shape == (1, 8, 8)
    assert digits.train.dtype == digits.test.dtype == torch.uint8
    np.testing.assert_array_equal(digits.train[:, 0].numpy(), images[order[:1347]])
    np.testing.assert_array_equal(digits.test[:, 0].numpy(), images[order[1347:]])
    assert sorted(order) == list(range(1797))  # disjoint and complete
    assert len(digits.test) == 450
    train, test = digits.conditions["classes"]
    np.testing.assert_array_equal(train.numpy(), target[order[:1347]])
    np.testing.assert_array_equal(test.numpy(), target[order[1347:]])
    assert digits.class_names == tuple("0123456789")
    assert "; 10 classes;" in digits.describe()


def test_describe_says_shape_levels_scaling_and_splits() -> None:
    line = DATASETS.build("digits").describe()
    for part in ("digits", "1×8×8", "17 grey levels", "1347 train", "450 test"):
        assert part in line
    line = DATASETS.build("two_moons", num_samples=500).describe()
    for part in ("two_moons", "2-dimensional vectors", "continuous", "500 train", "500 test"):
        assert part in line
    assert "\n" not in line


def continuous(*shape: int) -> Dataset:
    """Four examples in which all columns have mean 0 and standard deviation 1."""
    x = torch.tensor([-1.0, 1.0, -1.0, 1.0]).reshape(4, *[1] * len(shape)).expand(4, *shape).contiguous()
    return Dataset("mine", x, x.clone(), levels=None)


@pytest.mark.parametrize(
    ("shape", "noun", "words"),
    [
        ((5,), "vectors", "5-dimensional vectors"),
        ((2, 9), "series", "series 2×9"),
        ((2, 3, 4), "examples", "examples 2×3×4"),
        ((1, 3, 4, 5), "volumes", "volumes 1×3×4×5"),
        ((1, 3, 4, 5, 6), "examples", "examples 1×3×4×5×6"),
    ],
)
def test_noun_and_description_depend_on_the_rank(shape: tuple[int, ...], noun: str, words: str) -> None:
    data = continuous(*shape)
    assert data.noun == noun
    assert f"mine: {words}; continuous, " in data.describe()
    assert grey_ramp(4).noun == "images"


def test_describe_tells_moments_of_one_column_and_ranges_of_several() -> None:
    one = continuous(1)
    assert "continuous, mean 0, standard deviation 1; 4 train" in one.describe()
    several = one.train * torch.tensor([0.1, 50.0, 2.0]) + torch.tensor([-3.0, 0.5, 100.0])
    line = Dataset("mine", several, several, None).describe()
    assert "continuous, means −3 to 100, standard deviations 0.1 to 50; 4 train" in line
    assert "as they are" not in line
    channels = several[:, :2, None].expand(4, 2, 6)  # one mean for each channel of a series
    assert "means −3 to 0.5, standard deviations 0.1 to 50" in Dataset("mine", channels, channels, None).describe()


def test_describe_tells_classes_conditions_and_note() -> None:
    classes, age = (torch.tensor([0, 2, 1]), torch.tensor([0, 0, 0])), (torch.zeros(3), torch.ones(3))
    known = {"age": age, "classes": classes}
    data = Dataset("mine", VECTORS, VECTORS, None, known, note="made by hand")
    assert data.describe().endswith("; 3 classes; condition age; made by hand; 3 train, 3 test")
    data = Dataset("mine", VECTORS, VECTORS, None, {"age": age, "angle": age})
    assert data.describe().endswith("; conditions age, angle; 3 train, 3 test")
    data = Dataset("mine", VECTORS, VECTORS, None, {"classes": (classes[1], classes[1])})
    assert "; 1 class; 3 train" in data.describe()
    assert "class" not in grey_ramp(2).describe()


# Examples and conditions


def test_examples_are_picked_with_all_that_is_known_of_them() -> None:
    x = torch.arange(12.0).reshape(6, 2)
    examples = Examples(x, {"classes": torch.arange(6), "place": x[:, :1] * 10})
    assert len(examples) == 6
    for which in (slice(1, 5, 2), torch.tensor([4, 0, 4])):
        picked = examples[which]
        assert torch.equal(picked.x, x[which])
        assert torch.equal(picked.conditions["classes"], picked.x[:, 0].long() // 2)
        assert torch.equal(picked.conditions["place"], picked.x[:, :1] * 10)
    assert Examples(x).conditions == {}
    for wrong, words in ((2, "int"), (torch.tensor(2), "()"), (torch.ones(6), "float32"), (x > 3.0, "bool")):
        with refused("which=", words, "a slice, or indices (B,)"):
            examples[wrong]  # type: ignore[index]
    with refused("condition 'age' length=5", "6, one for each example"):
        Examples(x, {"age": torch.zeros(5)})


def test_split_gives_examples_and_their_conditions() -> None:
    classes = torch.tensor([1, 0, 1]), torch.tensor([0, 3])
    data = Dataset("mine", VECTORS, VECTORS[:2] + 1.0, None, {"classes": classes})
    for split, x, c in (("train", data.train, classes[0]), ("test", data.test, classes[1])):
        assert data.split(split).x is x
        assert data.split(split).conditions == {"classes": c}
    with refused("split='tests'", "'train' or 'test'"):
        data.split("tests")


def test_number_of_classes_is_that_of_names_or_covers_both_splits() -> None:
    assert Dataset("mine", VECTORS, VECTORS, None).num_classes == 0
    for classes in (
        (torch.tensor([1, 0, 1]), torch.tensor([0, 3, 0])),
        (torch.tensor([1, 3, 1]), torch.zeros(3).long()),
    ):
        assert Dataset("mine", VECTORS, VECTORS, None, {"classes": classes}).num_classes == 4
    assert Dataset("mine", VECTORS, VECTORS, None, {"classes": classes}, class_names=tuple("abcdef")).num_classes == 6


@pytest.mark.parametrize(
    ("conditions", "options", "words"),
    [
        ({"age": (torch.zeros(4), torch.zeros(3))}, {}, ("bad.train age length=4", "3, one for each")),
        ({"age": (torch.zeros(3), torch.zeros(2))}, {}, ("bad.test age length=2", "3, one for each")),
        ({"age": (torch.tensor(1.0), torch.zeros(3))}, {}, ("bad.train age length=None", "3, one for each")),
        ({"age": (torch.zeros(3), torch.full((3,), math.nan))}, {}, ("bad.test age NaN or infinite values=3", "none")),
        ({"age": (torch.zeros(3), torch.zeros(3, 1))}, {}, ("bad.test age shape", "3, 1", "like (3,)")),
        ({"age": (torch.zeros(3), torch.zeros(3).long())}, {}, ("bad.test age shape and dtype", "int64", "float32")),
        ({"a b": (torch.zeros(3),) * 2}, {}, ("bad.train condition='a b'", "a name like a variable's")),
        ({"x": (torch.zeros(3),) * 2}, {}, ("bad.train condition='x'", "none of x, t")),
        ({"classes": (torch.zeros(3),) * 2}, {}, ("bad.train classes dtype=torch.float32", "whole numbers from 0")),
        ({"classes": (torch.zeros(3, 1).long(),) * 2}, {}, ("bad.train classes shape=(3, 1)", "(3,), one class for")),
        ({"classes": (torch.arange(3), torch.arange(3) - 1)}, {}, ("bad.test classes minimum=-1", "numbers from 0")),
        ({"classes": (torch.arange(2), torch.arange(3))}, {}, ("bad.train classes length=2", "3, one for each")),
        (
            {"classes": (torch.arange(3), torch.arange(3))},
            {"class_names": ("a", "b")},
            ("bad.train classes maximum=2", "below 2, the number of class names"),
        ),
        ({}, {"class_names": ("a", "b")}, ("bad class_names=('a', 'b')", "no classes")),
        ({}, {"columns": ("a", "b", "c")}, ("bad.train number of columns' names=3", "2, one for each component")),
    ],
)
def test_dataset_refuses_conditions_and_names_that_do_not_fit(
    conditions: dict[str, tuple[torch.Tensor, torch.Tensor]], options: dict[str, Any], words: tuple[str, ...]
) -> None:
    with refused(*words):
        Dataset("bad", VECTORS, VECTORS, None, conditions, **options)


def test_columns_are_those_of_vectors() -> None:
    with refused("bad.train number of columns' names=1", "only vectors have columns"):
        Dataset("bad", IMAGES, IMAGES, 256, columns=("grey",))
    assert Dataset("mine", VECTORS, VECTORS, None, columns=("age", "height")).columns == ("age", "height")


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_the_first_column_or_channel_with_nan_is_named(broken: float) -> None:
    x = torch.zeros(5, 3)
    x[1:3, 1] = x[0, 2] = broken
    for columns, which in (((), "number 1 (counted from 0), with 2"), (("age", "height", "mass"), "'height', with 2")):
        with refused("bad.train NaN or infinite values=3", f"the first column that has them is {which};"):
            Dataset("bad", x, torch.zeros(5, 3), None, columns=columns)
    series = x.reshape(5, 3, 1).repeat(1, 1, 2)
    with refused("bad.test NaN or infinite values=6", "the first channel that has them is number 1", "with 4;"):
        Dataset("bad", torch.zeros(5, 3, 2), series, None)


# Scaling and dequantisation


@pytest.mark.parametrize(
    ("train", "test", "levels", "words"),
    [
        (IMAGES[:0], IMAGES, 256, ("bad.train shape=(0, 1, 2, 2)", "empty")),
        (IMAGES, IMAGES[:0], 256, ("bad.test shape=(0, 1, 2, 2)", "empty")),
        (IMAGES[0], IMAGES, 256, ("bad.train shape=(1, 2, 2)", "(N, C, H, W)")),
        (IMAGES, IMAGES[..., :1], 256, ("bad.test shape=(3, 1, 2, 1)", "(N, 1, 2, 2)")),
        (IMAGES.float(), IMAGES, 256, ("bad.train dtype", "float32", "uint8")),
        (IMAGES, IMAGES.long(), 256, ("bad.test dtype", "int64")),
        (IMAGES + 17, IMAGES, 17, ("bad.train maximum=17", "0 to 16")),
        (IMAGES, IMAGES, 1, ("levels=1", "at least 2")),
        (IMAGES, IMAGES, 257, ("levels=257", "256")),
        (VECTORS, VECTORS.double(), None, ("bad.test dtype", "float64", "float32")),
        (VECTORS[:, 0], VECTORS, None, ("bad.train shape=(3,)", "(N, d)")),
        (VECTORS / 0.0, VECTORS, None, ("bad.train NaN or infinite values=6",)),
        (VECTORS, VECTORS + math.inf, None, ("bad.test NaN or infinite values=6",)),
    ],
)
def test_dataset_refuses_unusable_splits(
    train: torch.Tensor, test: torch.Tensor, levels: int | None, words: tuple[str, ...]
) -> None:
    with refused(*words):
        Dataset("bad", train, test, levels=levels)


# The registry


def test_registry_names_and_refusals() -> None:
    assert set(DATASETS.names()) >= {"digits", "fashion_mnist", "cifar10", "image_folder", "npz", *TOYS}
    with refused("dataset='digit'", "did you mean 'digits'"):
        DATASETS.build("digit")
    with refused("rot='x'", "did you mean 'root'"):
        DATASETS.build("npz", rot="x")
    for name in DATASETS:
        assert DATASETS.config(name).keys() == set(DATASETS[name].__annotations__) - {"return"}  # all have defaults


def test_import_is_light() -> None:
    code = "import sys, sde_diffusion.data; print(*{'sklearn', 'torchvision', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Fashion-MNIST


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()


FASHION_LABELS = np.array([9, 0, 1, 8, 2, 7, 3], np.uint8), np.array([5, 0, 6], np.uint8)


def tiny_fashion(folder: Path, ending: str) -> tuple[np.ndarray, np.ndarray]:
    """Write seven training and three test images of 5×4 pixels, and their labels, in the right format."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    train, test = (rng.integers(256, size=(n, 5, 4), dtype=np.uint8) for n in (7, 3))
    for split, images, labels in (("train", train, FASHION_LABELS[0]), ("t10k", test, FASHION_LABELS[1])):
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{split}-{name}-ubyte{ending}"
            path.write_bytes(gzip.compress(idx(values)) if ending else idx(values))
    return train, test


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No download, and no Debian folder."""

    def unreachable(*args: object, **options: object) -> None:
        raise URLError("no route to host")

    for module in ("mnist", "cifar"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", unreachable)
    monkeypatch.setattr(torchvision_sets, "DEBIAN_FASHION_MNIST", str(tmp_path / "debian"))


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("layout", [".", "FashionMNIST/raw", "raw", "fashion-mnist", "../debian"])
def test_fashion_mnist_is_found_in_each_layout(tmp_path: Path, layout: str, ending: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    train, test = tiny_fashion(root / layout, ending)
    fashion = DATASETS.build("fashion_mnist", root=str(root))
    np.testing.assert_array_equal(fashion.train[:, 0].numpy(), train)
    np.testing.assert_array_equal(fashion.test[:, 0].numpy(), test)
    assert fashion.shape == (1, 5, 4)
    assert fashion.levels == 256
    for found, labels in zip(fashion.conditions["classes"], FASHION_LABELS, strict=True):
        assert found.tolist() == labels.tolist()
    assert fashion.num_classes == 10
    assert fashion.class_names[9] == "Ankle boot"


@pytest.mark.usefixtures("offline")
def test_fashion_mnists_labels_lie_beside_the_images(tmp_path: Path) -> None:
    tiny_fashion(tmp_path, "")
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    content = labels.read_bytes()
    labels.unlink()
    with refused(f"file='{labels}'", "expected labels beside the images t10k-images-idx3-ubyte", "fetch this file too"):
        DATASETS.build("fashion_mnist", root=str(tmp_path))
    Path(f"{labels}.gz").write_bytes(gzip.compress(content))  # compressed beside images that are not
    assert DATASETS.build("fashion_mnist", root=str(tmp_path)).conditions["classes"][1].tolist() == [5, 0, 6]
    again = "delete it and fetch it again"
    for damaged, words in (
        (content[:-1], ("11 bytes as its header says, not 10", again)),
        ((tmp_path / "t10k-images-idx3-ubyte").read_bytes(), ("idx1-ubyte file of labels (magic number 0x801)", again)),
        (idx(np.zeros(2, np.uint8)), ("3 labels, one for each image, not 2", again)),
        (idx(np.full(3, 10, np.uint8)), ("fashion_mnist.test classes maximum=10", "below 10")),
    ):
        labels.write_bytes(damaged)
        with refused(*words, *([str(labels)] if again in words else [])):
            DATASETS.build("fashion_mnist", root=str(tmp_path))


@pytest.mark.usefixtures("offline")
def test_root_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_fashion(tmp_path / "images", ".gz")
    assert len(DATASETS.build("fashion_mnist", root="~/images").train) == 7


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("name", "looked_for"), [("fashion_mnist", "t10k-images-idx3-ubyte"), ("cifar10", "cifar-10-python.tar.gz")]
)
def test_offline_without_a_copy_is_one_line(tmp_path: Path, name: str, looked_for: str) -> None:
    root = str(tmp_path / "none")
    with refused(f"dataset='{name}'", root, looked_for, "no route to host", "go online"):
        DATASETS.build(name, root=root)


@pytest.mark.usefixtures("offline")
def test_fashion_mnist_is_read_after_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def download(root: str, *, download: bool) -> None:
        assert download
        print("extracting")  # as older versions do: must not reach stdout
        tiny_fashion(Path(root) / "FashionMNIST/raw", "")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", download)
    assert len(DATASETS.build("fashion_mnist", root=str(tmp_path)).test) == 3
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("ending", "damage", "words"),
    [
        (".gz", lambda content: content[:-20], ("cannot be read",)),
        (".gz", lambda content: b"<html>not found</html>", ("cannot be read",)),
        (".gz", lambda content: content[:30] + b"\xff" * 40 + content[70:], ("cannot be read",)),
        ("", lambda content: content[:-1], ("76 bytes as its header says, not 75",)),
        ("", lambda content: content[:10], ("magic number 0x803",)),
        ("", lambda content: b"\0\0\x08\x01" + content[4:], ("magic number 0x803",)),
    ],
)
def test_damaged_idx_file_is_named(
    tmp_path: Path, ending: str, damage: Callable[[bytes], bytes], words: tuple[str, ...]
) -> None:
    tiny_fashion(tmp_path, ending)
    path = tmp_path / f"t10k-images-idx3-ubyte{ending}"
    path.write_bytes(damage(path.read_bytes()))
    with refused(str(path), "delete it and fetch it again", *words):
        DATASETS.build("fashion_mnist", root=str(tmp_path))


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_root_must_be_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with refused("root=", "file", "not a file"):
        DATASETS.build(name, root=str(tmp_path / "file"))
    with refused("root=''", "a folder"):
        DATASETS.build(name, root="")


@pytest.mark.skipif(
    not Path(torchvision_sets.DEBIAN_FASHION_MNIST).is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_debians_fashion_mnist(tmp_path: Path) -> None:
    fashion = DATASETS.build("fashion_mnist", root=str(tmp_path))
    assert fashion.train.shape == (60000, 1, 28, 28)
    assert fashion.test.shape == (10000, 1, 28, 28)
    assert fashion.train.float().mean().item() == pytest.approx(0.2860 * 255, abs=0.02)  # the published mean
    for classes in fashion.conditions["classes"]:
        assert classes.bincount().tolist() == [len(classes) // 10] * 10  # the sets are balanced
    boots, shirts = (fashion.train[fashion.conditions["classes"][0] == c].float() for c in (9, 0))
    assert boots[..., 20:, :].mean() > 1.5 * boots[..., :8, :].mean()  # the sole is below, the leg narrow
    assert shirts[..., :8, :].mean() > 0.5 * shirts[..., 20:, :].mean()
    assert list(tmp_path.iterdir()) == []  # nothing was written


# CIFAR-10: the real archive is not at hand, so torchvision's checksums are set to those of a small one


@pytest.fixture
def tiny_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray, np.ndarray]:
    """Write six files in the format of CIFAR-10 with few images; torchvision takes them for the real ones."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "store" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)
    pixels = rng.integers(256, size=(6, 2, 3072), dtype=np.uint8)
    files = {f"data_batch_{i + 1}": {"data": pixels[i], "labels": [i, 9 - i]} for i in range(5)}
    files |= {"test_batch": {"data": pixels[5], "labels": [7, 1]}, "batches.meta": {"label_names": ["a", "b"]}}
    sums = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    with tarfile.open(folder.parent / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(folder, arcname=folder.name)
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    packed = (folder.parent / "cifar-10-python.tar.gz").read_bytes()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(packed).hexdigest())
    images = pixels.reshape(6, 2, 3, 32, 32)  # the files store channels first
    return folder.parent, images[:5].reshape(10, 3, 32, 32), images[5]


def test_cifar10_is_found_as_folder_and_as_archive(
    tiny_cifar: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, train, test = tiny_cifar
    alone = tmp_path / "alone"
    alone.mkdir()
    os.replace(store / "cifar-10-python.tar.gz", alone / "cifar-10-python.tar.gz")
    for root in (store, store / "cifar-10-batches-py", alone, alone):  # the second time from the unpacked folder
        cifar = DATASETS.build("cifar10", root=str(root))
        np.testing.assert_array_equal(cifar.train.numpy(), train)
        np.testing.assert_array_equal(cifar.test.numpy(), test)
        assert cifar.levels == 256
        assert cifar.train.is_contiguous()
        assert cifar.conditions["classes"][0].tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
        assert cifar.conditions["classes"][1].tolist() == [7, 1]
        assert (cifar.num_classes, cifar.class_names[3], cifar.class_names[9]) == (10, "cat", "truck")


def test_cifar10_damaged_files_are_named(tiny_cifar: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    store = tiny_cifar[0]
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "cifar-10-python.tar.gz").write_bytes((store / "cifar-10-python.tar.gz").read_bytes()[:-9])
    with refused(str(alone / "cifar-10-python.tar.gz"), "md5", "delete it and fetch it again"):
        DATASETS.build("cifar10", root=str(alone))
    batch = store / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-1])
    with refused(str(batch.parent), "missing or damaged"):
        DATASETS.build("cifar10", root=str(store))


# Folders of pictures


def save(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 30), colour: Any = (200, 100, 50)) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).convert(mode, palette=Image.Palette.ADAPTIVE).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures of one colour in several sizes, modes and formats, with other files between them."""
    modes = ["RGB", "L", "P", "RGBA", "LA", "1", "RGB", "CMYK", "RGB", "RGB"]
    endings = ["png", "png", "png", "png", "png", "png", "jpg", "jpg", "bmp", "webp"]
    for i, (mode, ending) in enumerate(zip(modes, endings, strict=True)):
        save(tmp_path / f"class{i % 3}" / f"{i}.{ending}", mode, size=(20 + 7 * i, 33))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._0.png").write_text("a hidden file of another system")
    return tmp_path


@pytest.mark.parametrize("channels", [1, 3])
def test_image_folder_reads_sizes_modes_and_formats(pictures: Path, channels: int) -> None:
    folder = DATASETS.build("image_folder", root=str(pictures), image_size=16, channels=channels, test_fraction=0.3)
    assert folder.train.shape == (7, channels, 16, 16)
    assert folder.test.shape == (3, channels, 16, 16)
    both = torch.cat([folder.train, folder.test]).float()
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    expected = torch.tensor([grey] if channels == 1 else [200.0, 100.0, 50.0]).reshape(1, channels, 1, 1)
    in_colour = (both - expected).abs().amax(dim=(1, 2, 3)) < 5.0
    # The grey pictures and the dithered black-and-white one lost the colour when they were written.
    assert int(in_colour.sum()) == (9 if channels == 1 else 7)


def test_image_folder_split_depends_on_names_alone(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for i, path in enumerate(sorted(pictures.rglob("?.*"))):
        save(path.with_suffix(".png"), colour=(20 * i, 0, 0))
        if path.suffix != ".png":
            path.unlink()
    elsewhere = tmp_path_factory.mktemp("copy") / "moved"
    pictures_again = DATASETS.build("image_folder", root=str(pictures), image_size=4, test_fraction=0.3)
    os.replace(pictures, elsewhere)
    moved = DATASETS.build("image_folder", root=str(elsewhere), image_size=4, test_fraction=0.3)
    assert torch.equal(moved.train, pictures_again.train)
    assert torch.equal(moved.test, pictures_again.test)
    reds = torch.cat([moved.train, moved.test])[:, 0, 0, 0].tolist()
    assert sorted(reds) == [20 * i for i in range(10)]  # disjoint and complete
    assert moved.train[:, 0, 0, 0].tolist() != sorted(moved.train[:, 0, 0, 0].tolist())  # not sorted by their folders


def test_image_folder_crops_the_centre_and_antialiases(tmp_path: Path) -> None:
    from PIL import Image

    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255  # the central square is white
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(stripes).save(tmp_path / "b.png")
    folder = DATASETS.build("image_folder", root=str(tmp_path), image_size=8, channels=1, test_fraction=0.5)
    levels = sorted((folder.train.float().mean().item(), folder.test.float().mean().item()))
    assert levels[1] == 255.0
    assert levels[0] == pytest.approx(127.5, abs=2.0)
    spread = min(folder.train.float().std().item(), folder.test.float().std().item())
    assert spread < 1.0


def test_image_folder_turns_pictures_upright_and_lays_transparency_on_white(tmp_path: Path) -> None:
    from PIL import Image

    half = np.zeros((8, 8, 3), np.uint8)
    half[:4] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 3  # the camera was held upside down
    Image.fromarray(half).save(tmp_path / "a.png", exif=exif)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "b.png")
    folder = DATASETS.build("image_folder", root=str(tmp_path), image_size=8, test_fraction=0.5)
    turned, clear = sorted([folder.train[0], folder.test[0]], key=lambda image: image.float().mean().item())
    assert bool((turned[:, :4] == 0).all())
    assert bool((turned[:, 4:] == 255).all())
    assert bool((clear == 255).all())


def test_image_folder_names_the_broken_file(pictures: Path) -> None:
    from PIL import Image

    broken = pictures / "class1" / "broken.png"
    broken.write_bytes((pictures / "class0" / "0.png").read_bytes()[:60])
    named = f"root='{pictures}': expected pictures that can be read; repair or remove class1/broken.png ("
    with refused(f"{named}image file is truncated)"):
        DATASETS.build("image_folder", root=str(pictures))
    with refused("image: expected pictures of 20×30 pixels in colour", f"1 of 1: {broken} (image file is truncated)"):
        load_pictures([broken], (3, 30, 20))
    broken.write_text("no picture at all")
    with refused(f"{named}cannot identify image file)"):
        DATASETS.build("image_folder", root=str(pictures))
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(broken)
    with refused(f"{named}more than 8 bits a channel: convert it to 8)"):
        DATASETS.build("image_folder", root=str(pictures))


def test_image_folder_names_all_broken_files_at_once(pictures: Path) -> None:
    for i in range(23):
        (pictures / f"bad{i:02}.png").write_text("no picture at all")
    some = ", ".join(f"bad{i:02}.png (cannot identify image file)" for i in range(20))
    with refused(f"repair or remove {some} and 3 more"):
        DATASETS.build("image_folder", root=str(pictures))
    for i in range(20):
        (pictures / f"bad{i:02}.png").unlink()
    with refused("bad20.png (", "bad21.png (", "bad22.png ("):
        DATASETS.build("image_folder", root=str(pictures))


def test_image_folders_classes_are_its_subfolders_in_alphabetical_order(pictures: Path) -> None:
    for i, name in enumerate(("zebra", "Ant", "bee")):
        os.replace(pictures / f"class{i}", pictures / name)
    save(pictures / "bee" / "deeper" / "again.png", colour=(1, 2, 3))
    folder = DATASETS.build("image_folder", root=str(pictures), image_size=4, test_fraction=0.3)
    assert folder.class_names == ("Ant", "bee", "zebra")
    both = torch.cat(folder.conditions["classes"])
    assert both.bincount().tolist() == [3, 4, 4]  # pictures 0 … 9 lie in three folders by turns
    for split in ("train", "test"):
        examples = folder.split(split)
        dark = examples.x.amax(dim=(1, 2, 3)) < 9
        assert bool((examples.conditions["classes"][dark] == 1).all())
    assert "; 3 classes; central crops, resized to 4×4; " in folder.describe()
    save(pictures / "stray.png")
    stray = DATASETS.build("image_folder", root=str(pictures), image_size=4)
    assert (stray.conditions, stray.class_names, stray.num_classes) == ({}, (), 0)


def coloured(folder: Path, *names: str) -> None:
    """Write pictures whose red is 10, 20, …, in the order of the names."""
    for i, name in enumerate(names):
        save(folder / name, colour=(10 * (i + 1), 0, 0))


def reds(x: torch.Tensor) -> list[int]:
    return [int(red) for red in x[:, 0, 0, 0]]


def test_folders_train_and_test_are_the_splits_and_hold_the_classes(tmp_path: Path) -> None:
    names = ("train/cat/a.png", "train/ant/b.png", "train/cat/deep/c.png", "test/cat/d.png", "test/cat/e.png")
    coloured(tmp_path, *names)
    (tmp_path / "readme.txt").touch()
    folder = DATASETS.build("image_folder", root=str(tmp_path), image_size=2, test_fraction=0.9)
    assert sorted(reds(folder.train)) == [10, 20, 30]
    assert sorted(reds(folder.test)) == [40, 50]
    assert folder.class_names == ("ant", "cat")  # one that is only in train is no harm
    of_train, of_test = (c.tolist() for c in folder.conditions["classes"])
    assert dict(zip(reds(folder.train), of_train, strict=True)) == {10: 1, 20: 0, 30: 1}
    assert of_test == [1, 1]
    assert "; 2 classes; central crops, resized to 2×2, split by folder; 3 train, 2 test" in folder.describe()
    coloured(tmp_path, "test/f.png")
    assert DATASETS.build("image_folder", root=str(tmp_path), image_size=2).conditions == {}
    coloured(tmp_path, "other/f.png")  # with a third folder they are nothing special
    third = DATASETS.build("image_folder", root=str(tmp_path), image_size=2)
    assert third.class_names == ("other", "test", "train")
    assert len(third.test) == 1
    coloured(tmp_path / "three", "train/a/a.png", "test/a/b.png", "val/a/c.png")
    with refused("train and test alone, as splits", "it has ['test', 'train', 'val']"):
        DATASETS.build("image_folder", root=str(tmp_path / "three"))
    coloured(tmp_path / "hidden", "a.png", "b.png", ".thumbnails/a.png")
    assert len(DATASETS.build("image_folder", root=str(tmp_path / "hidden"), image_size=2).train) == 1


def test_a_class_that_is_only_in_test_is_refused(tmp_path: Path) -> None:
    coloured(tmp_path, "train/cat/a.png", "test/cat/b.png", "test/dog/c.png", "test/ant/c.png")
    with refused(f"root='{tmp_path}'", "every class of test in train", "only in test: ant, dog"):
        DATASETS.build("image_folder", root=str(tmp_path))


# Shapes of pictures: a red frame around blue, so that it can be seen what was left of them


def framed(path: Path, height: int, width: int, alpha: bool = False) -> np.ndarray:
    """Write a blue picture with red columns at the left and right quarter, or these transparent."""
    from PIL import Image

    pixels = np.zeros((height, width, 4), np.uint8)
    pixels[..., 2:] = 255
    pixels[:, : width // 4] = pixels[:, width - width // 4 :] = (255, 0, 0, 0 if alpha else 255)
    Image.fromarray(pixels if alpha else pixels[..., :3]).save(path)
    return pixels[..., :3]


def fitted(folder: Path, fit: str, image_size: int | tuple[int, int]) -> np.ndarray:
    """Return the only kind of picture in the folder, written twice: (H, W, C)."""
    data = DATASETS.build("image_folder", root=str(folder), image_size=image_size, fit=fit, test_fraction=0.5)
    assert torch.equal(data.train, data.test)
    return data.train[0].permute(1, 2, 0).numpy()


def test_fit_of_a_wide_picture(tmp_path: Path) -> None:
    from PIL import Image

    for name in "ab":
        pixels = framed(tmp_path / f"{name}.png", 8, 32)
    blue, red, white = (0, 0, 255), (255, 0, 0), (255, 255, 255)
    square = fitted(tmp_path, "crop", 8)  # columns 12 to 19, inside of the blue
    np.testing.assert_array_equal(square, pixels[:, 12:20])
    np.testing.assert_array_equal(fitted(tmp_path, "crop", (8, 16)), pixels[:, 8:24])
    np.testing.assert_array_equal(fitted(tmp_path, "crop", (8, 24)), pixels[:, 4:28])
    np.testing.assert_array_equal(fitted(tmp_path, "crop", (2, 2)), np.full((2, 2, 3), blue))
    tall = fitted(tmp_path, "crop", (16, 8))  # the central 8×4, enlarged
    assert tall.shape == (16, 8, 3)
    np.testing.assert_array_equal(tall, np.broadcast_to(blue, (16, 8, 3)))

    padded = fitted(tmp_path, "pad", (12, 32))  # it fits as it is
    np.testing.assert_array_equal(padded[2:10], pixels)
    assert (padded[[0, 1, 10, 11]] == white).all()
    padded = fitted(tmp_path, "pad", 16)  # halved: 4 rows in the middle
    assert (padded[6:10, 7:9] == blue).all()  # away from the edges, around which Lanczos rings
    assert (padded[6:10, [0, 15]] == red).all()
    assert (padded[[*range(6), *range(10, 16)]] == white).all()
    padded = fitted(tmp_path, "pad", (8, 40))  # narrower than wanted: white at the sides
    np.testing.assert_array_equal(padded[:, 4:36], pixels)
    assert (padded[:, :4] == white).all()
    assert (padded[:, 36:] == white).all()

    stretched = fitted(tmp_path, "stretch", (16, 32))
    np.testing.assert_array_equal(stretched, pixels[:1].repeat(16, axis=0))
    expected = Image.fromarray(pixels).resize((10, 6), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(fitted(tmp_path, "stretch", (6, 10)), np.asarray(expected))
    np.testing.assert_array_equal(fitted(tmp_path, "none", (8, 32)), pixels)


def test_square_crops_are_those_of_the_central_square(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for height, width in ((31, 48), (53, 20), (7, 7), (1, 9)):
        pixels = rng.integers(256, size=(height, width, 3), dtype=np.uint8)
        for name in "ab":
            Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        side, left, top = min(height, width), max(0, width - height) // 2, max(0, height - width) // 2
        square = Image.fromarray(pixels[top : top + side, left : left + side])
        expected = np.asarray(square.resize((16, 16), Image.Resampling.LANCZOS))
        np.testing.assert_array_equal(fitted(tmp_path, "crop", 16), expected)
        np.testing.assert_array_equal(fitted(tmp_path, "crop", (16, 16)), expected)


def test_extreme_shapes_keep_a_pixel(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / f"{name}.png", size=(400, 1))
    assert (fitted(tmp_path, "pad", 8)[3] == (200, 100, 50)).all()  # one row is left of it
    assert (fitted(tmp_path, "crop", (400, 1)) == (200, 100, 50)).all()


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch", "none"])
def test_transparency_lies_on_white_however_pictures_fit(tmp_path: Path, fit: str) -> None:
    for name in "ab":
        framed(tmp_path / f"{name}.png", 8, 16, alpha=True)
    picture = fitted(tmp_path, fit, (8, 16))
    assert (picture[:, [0, 1, 14, 15]] == 255).all()  # not the red behind it
    assert (picture[:, 6:10] == (0, 0, 255)).all()
    if fit == "pad":
        assert (fitted(tmp_path, fit, 16)[:, [0, 15]] == 255).all()


def test_grey_pictures_are_padded_with_white(tmp_path: Path) -> None:
    coloured(tmp_path, "a.png", "b.png")  # 30×20
    data = DATASETS.build("image_folder", root=str(tmp_path), image_size=30, channels=1, fit="pad", test_fraction=0.5)
    assert data.shape == (1, 30, 30)
    assert bool((data.train[..., :5] == 255).all())
    assert bool((data.train[..., 25:] == 255).all())
    assert bool((data.train[..., 5:25] < 10).all())


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        ("crop", "central crops, resized to 30×20"),
        ("pad", "whole pictures, resized to fit into 30×20 on white"),
        ("stretch", "whole pictures, stretched to 30×20"),
        ("none", "pictures of 30×20 as they are"),
    ],
)
def test_the_note_says_what_was_done(tmp_path: Path, fit: str, words: str) -> None:
    coloured(tmp_path, "a.png", "b.png", "c.png")
    data = DATASETS.build("image_folder", root=str(tmp_path), image_size=(30, 20), fit=fit)
    assert data.note == words
    assert data.describe().startswith("image_folder: images 3×30×20; ")
    assert f"; {words}; 2 train, 1 test" in data.describe()


def test_pictures_of_another_size_are_listed_at_once(tmp_path: Path) -> None:
    coloured(tmp_path, "a.png", "b.png")
    save(tmp_path / "sub" / "c.png", size=(30, 20))
    expected = "fit='none': expected only pictures of 30×20 pixels (height×width), not "
    with refused(f"{expected}sub/c.png (20×30); ", "let fit be crop, pad or stretch"):
        DATASETS.build("image_folder", root=str(tmp_path), image_size=(30, 20), fit="none")
    for i in range(25):
        save(tmp_path / f"wide{i:02}.png", size=(10 + i, 9))
    some = ", ".join(f"wide{i:02}.png (9×{10 + i})" for i in range(19))
    with refused(f"{expected}sub/c.png (20×30), {some} and 6 more; "):
        DATASETS.build("image_folder", root=str(tmp_path), image_size=(30, 20), fit="none")


def test_height_and_width_of_an_option() -> None:
    assert height_and_width(32) == (32, 32)
    assert height_and_width((32, 48)) == height_and_width([32, 48]) == (32, 48)


def test_image_folder_refuses_bad_options(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({"root": ""}, ("root=''",)),
        ({"root": str(pictures / "none")}, ("none", "existing folder")),
        ({"root": str(pictures / "notes.txt")}, ("notes.txt", "existing folder")),
        ({"root": str(empty)}, (str(empty), "pictures in it")),
        ({"channels": 4}, ("channels=4", "1 (grey) or 3 (RGB)")),
        ({"image_size": 0}, ("image_size=0", "at least 1")),
        ({"image_size": 2.0}, ("image_size=2.0", "a whole number of at least 1, or two: (height, width)")),
        ({"image_size": True}, ("image_size=True", "a whole number")),
        ({"image_size": (32, 0)}, ("image_size=(32, 0)", "two: (height, width)")),
        ({"image_size": (32,)}, ("image_size=(32,)", "two: (height, width)")),
        ({"image_size": (3, 32, 32)}, ("image_size=(3, 32, 32)", "two: (height, width)")),
        ({"image_size": "32"}, ("image_size='32'", "two: (height, width)")),
        ({"fit": "cover"}, ("fit='cover'", "one of crop, pad, stretch, none")),
        ({"test_fraction": 0.0}, ("test_fraction=0.0",)),
        ({"test_fraction": 1.0}, ("test_fraction=1.0", "less than 1")),
    ]
    for options, words in cases:
        with refused(*words):
            DATASETS.build("image_folder", **{"root": str(pictures), **options})
    save(empty / "only.png")
    with refused("1 examples", "at least 2"):
        DATASETS.build("image_folder", root=str(empty))


# Arrays


def write(path: Path, **arrays: np.ndarray) -> str:
    file = path / "data.npz"
    np.savez(file, **arrays)  # type: ignore[arg-type]  # its flag allow_pickle has another type
    return str(file)


def test_npz_finds_the_channels(tmp_path: Path) -> None:
    images = np.random.default_rng(3).integers(256, size=(10, 3, 6, 5), dtype=np.uint8)
    for train, test in [(images[:7], images[7:]), (images[:7].transpose(0, 2, 3, 1), images[7:].transpose(0, 2, 3, 1))]:
        arrays = DATASETS.build("npz", root=write(tmp_path, train=train, test=test))
        np.testing.assert_array_equal(arrays.train.numpy(), images[:7])
        np.testing.assert_array_equal(arrays.test.numpy(), images[7:])
        assert arrays.levels == 256
        assert arrays.shape == (3, 6, 5)
    grey = DATASETS.build("npz", root=write(tmp_path, train=images[:7, 0], test=images[7:, 0]))
    assert grey.shape == (1, 6, 5)
    assert DATASETS.build("npz", root=write(tmp_path, train=images[:7] // 16, test=images[7:] // 16), levels=16)


def test_npz_splits_a_single_array_the_same_way_each_time(tmp_path: Path) -> None:
    vectors = np.arange(60, dtype=np.float64).reshape(20, 3)
    root = write(tmp_path, anything=vectors)
    first, second = (DATASETS.build("npz", root=root, test_fraction=0.25) for _ in range(2))
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.test, second.test)
    assert first.levels is None
    assert first.train.dtype == torch.float32
    assert first.shape == (3,)
    assert (len(first.train), len(first.test)) == (15, 5)
    both = torch.cat([first.train, first.test])
    assert sorted(both[:, 0].tolist()) == vectors[:, 0].tolist()  # disjoint and complete, rows kept whole
    assert torch.equal(both[:, 2] - both[:, 0], torch.full((20,), 2.0))
    assert len(DATASETS.build("npz", root=root, test_fraction=0.001).test) == 1
    assert len(DATASETS.build("npz", root=root, test_fraction=0.999).train) == 1


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.array([{"code": 1}], dtype=object)}, ("plain arrays", "a.npy has objects, which could run code")),
        ({"a": np.zeros((4, 2)), "b": np.zeros((4, 2))}, ("'train' and 'test', or an array 'x'", "has ['a', 'b']")),
        ({"train": np.zeros((4, 2)), "b": np.zeros((4, 2))}, ("'train' and 'test'", "it has ['b', 'train']")),
        ({"columns": np.array(["a"])}, ("a single array; it has []",)),
        ({"train": np.array(1.0), "test": np.zeros((4, 2))}, ("array train shape=()", "(N, *)")),
        ({"a": np.zeros((4, 2), np.int64)}, ("array a dtype", "int64", "uint8")),
        ({"a": np.zeros((4, 2), complex)}, ("array a dtype", "complex128")),
        ({"a": np.zeros((4, 3, 5, 3), np.uint8)}, ("(4, 3, 5, 3)", "both fit")),
        ({"a": np.zeros((4, 5, 5, 2), np.uint8)}, ("(4, 5, 5, 2)", "neither fits")),
        ({"a": np.zeros((4, 5), np.uint8)}, ("(4, 5)", "(N, H, W)")),
        ({"a": np.zeros(4)}, ("npz.train shape=(3,)", "(N, d)")),
        ({"a": np.array(1.0)}, ("array a shape=()",)),
        ({"a": np.zeros((1, 2))}, ("1 examples", "at least 2")),
        ({"a": np.zeros((0, 2))}, ("0 examples", "at least 2")),
        ({"a": np.full((4, 2), np.nan)}, ("npz.train NaN or infinite values=6",)),
        ({"a": np.full((4, 2), 1e300)}, ("npz.train NaN or infinite values=6",)),
        ({"train": np.zeros((4, 2)), "test": np.zeros((4, 3))}, ("npz.test shape=(4, 3)", "(N, 2)")),
        ({"train": np.zeros((4, 2)), "test": np.zeros((4, 2, 2), np.uint8)}, ("npz.test dtype", "uint8")),
        ({"train": np.zeros((4, 2)), "test": np.zeros((0, 2))}, ("npz.test shape=(0, 2)", "empty")),
    ],
)
def test_npz_refuses_other_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], words: tuple[str, ...]) -> None:
    with refused(*words):
        DATASETS.build("npz", root=write(tmp_path, **arrays))


def test_npz_reads_conditions_of_both_splits(tmp_path: Path) -> None:
    x = np.arange(10.0).reshape(5, 2)
    classes = {"train_classes": np.array([0.0, 2.0, 1.0, 0.0, 1.0]), "test_classes": np.array([2, 0], ">i2")}
    others = {"train_age": np.arange(5), "test_age": np.arange(2), "train_place": x / 3, "test_place": x[:2] / 3}
    names = {"class_names": np.array(["a", "b", "c", "d"]), "columns": np.array(["height", "mass"])}
    data = DATASETS.build("npz", root=write(tmp_path, train=x, test=x[:2], **classes, **others, **names))
    assert data.conditions.keys() == {"classes", "age", "place"}
    assert [c.tolist() for c in data.conditions["classes"]] == [[0, 2, 1, 0, 1], [2, 0]]
    assert data.conditions["classes"][1].dtype == torch.int64
    assert data.conditions["age"][0].dtype == torch.float32
    assert data.conditions["age"][0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    torch.testing.assert_close(data.conditions["place"][1], data.test / 3)
    assert (data.class_names, data.columns, data.num_classes) == (("a", "b", "c", "d"), ("height", "mass"), 4)
    assert "; 4 classes; conditions age, place; 5 train, 2 test" in data.describe()


def test_npz_splits_conditions_along(tmp_path: Path) -> None:
    x, columns = np.arange(40.0).reshape(20, 2), np.array(["even", "odd"])
    alone = DATASETS.build("npz", root=write(tmp_path, anything=x, columns=columns), test_fraction=0.25)
    assert (alone.conditions, alone.columns) == ({}, ("even", "odd"))
    known = {"classes": np.arange(20, dtype=np.uint8), "height": x[:, 0], "image": x.reshape(20, 1, 2)}
    data = DATASETS.build("npz", root=write(tmp_path, x=x, columns=columns, **known), test_fraction=0.25)
    assert data.columns == ("even", "odd")
    assert (len(data.train), len(data.test)) == (15, 5)
    assert torch.equal(data.train, alone.train)  # the same split
    for split in ("train", "test"):
        examples = data.split(split)
        assert torch.equal(examples.conditions["classes"] * 2, examples.x[:, 0].long())
        assert torch.equal(examples.conditions["height"], examples.x[:, 0])
        assert torch.equal(examples.conditions["image"][:, 0], examples.x)


X = np.zeros((4, 2))
PAIR = {"train": X, "test": X}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (PAIR | {"labels": np.zeros(4)}, ("conditions 'train_NAME' and 'test_NAME'", "it also has ['labels']")),
        (PAIR | {"x": X}, ("it also has ['x']",)),
        (PAIR | {"train_age": np.zeros(4)}, ("conditions of both splits", "it has 'train_age' without 'test_age'")),
        (PAIR | {"test_age": np.zeros(4)}, ("conditions of both splits", "it has 'test_age' without 'train_age'")),
        (PAIR | {"train_age": np.zeros(4), "test_age": np.zeros(3)}, ("test age length=3", "4, one for each")),
        (PAIR | {"train_": np.zeros(4), "test_": np.zeros(4)}, ("train condition=''", "a name like a variable's")),
        ({"x": X, "age": np.zeros(3)}, ("shapes of arrays={'age': (3,)}", "(4, …), one value for each example of 'x'")),
        ({"x": X, "b": np.array(1.0), "a": np.zeros((2, 4))}, ("shapes of arrays={'a': (2, 4), 'b': ()}",)),
        ({"x": X, "t": np.zeros(4)}, ("x condition='t'", "none of x, t")),
        ({"x": X, "age": np.array([1.0, np.nan, 2.0, np.inf])}, ("x age NaN or infinite values=2", "none")),
        ({"x": X, "age": np.full(4, 1e300)}, ("x age NaN or infinite values=4",)),
        ({"x": X, "age": np.array(list("abcd"))}, ("array age dtype='<U1'", "numbers", "leave it out")),
        ({"x": X, "classes": np.array(list("abcd"))}, ("array classes dtype='<U1'", "numbers", "names in class_names")),
        ({"x": X, "classes": np.array([0.0, 1.5, 1.0, 0.5])}, ("array classes=1.5", "whole numbers", "2 are not")),
        ({"x": X, "classes": np.array([0.0, 1.0, 1.0, np.nan])}, ("array classes=nan", "whole numbers", "1 are not")),
        ({"x": X, "classes": np.array([0.0, 1.0, 1.0, 1e300])}, ("array classes=1e+300", "whole numbers")),
        (PAIR | {"train_classes": np.full(4, 0.5), "test_classes": np.zeros(4)}, ("array train_classes=0.5", "4 are")),
        ({"x": X, "classes": np.array([0, -1, 0, 0])}, ("x classes minimum=-1", "whole numbers from 0")),
        ({"x": X, "classes": np.zeros((4, 1))}, ("x classes shape=(4, 1)", "(4,), one class for each example")),
        ({"x": X, "classes": np.arange(4), "class_names": np.array(["a"])}, ("x classes maximum=3", "below 1")),
        ({"x": X, "class_names": np.array(["a"])}, ("npz class_names=('a',)", "there are no classes")),
        ({"x": X, "class_names": np.arange(2)}, ("array class_names dtype and shape='int64 (2,)'", "strings (n,)")),
        ({"x": X, "columns": np.array([["a", "b"]])}, ("array columns dtype and shape='<U1 (1, 2)'", "strings (n,)")),
        ({"x": X, "columns": np.array(["a"])}, ("npz.train number of columns' names=1", "2, one for each component")),
        (
            {"x": X + np.array([0.0, np.nan]), "columns": np.array(["a", "b"])},
            ("npz.train NaN or infinite values=3", "the first column that has them is 'b', with 3"),
        ),
    ],
)
def test_npz_refuses_conditions_and_names(
    tmp_path: Path, arrays: dict[str, np.ndarray], words: tuple[str, ...]
) -> None:
    with refused(*words):
        DATASETS.build("npz", root=write(tmp_path, **arrays), test_fraction=0.01)


def test_read_rows_takes_x_or_test_or_the_only_array(tmp_path: Path) -> None:
    x = np.arange(8.0).reshape(4, 2)
    others = {"train": X[:, :1], "train_age": X, "train_classes": X, "columns": np.array(["a", "b"])}
    for arrays in (
        {"x": x, "classes": np.arange(4)},
        {"test": x, "test_classes": np.arange(4)},
        {"test": x, "test_classes": np.arange(4), **others},
        {"rows": x},
        {"train": x},
    ):
        rows = read_rows(write(tmp_path, **arrays), like=(2,))
        np.testing.assert_array_equal(rows.x.numpy(), x)
        classes = [] if len(arrays) == 1 else [("classes", [0, 1, 2, 3])]
        assert [(name, value.tolist()) for name, value in rows.conditions.items()] == classes
    one = read_rows(Path(write(tmp_path, x=x[:1], age=np.ones((1, 3)))))  # one row is enough, and any shape
    assert (len(one), one.conditions["age"].shape) == (1, (1, 3))
    images = read_rows(write(tmp_path, x=np.full((2, 5, 4, 3), 9, np.uint8)), like=(3, 5, 4))
    assert images.x.shape == (2, 3, 5, 4)
    assert images.x.dtype == torch.uint8


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((4, 3))}, ("array x shape=(4, 3)", "(N, 2)")),
        ({"test": np.zeros((4, 2, 1))}, ("array test shape=(4, 2, 1)", "(N, 2)")),
        ({"a": X, "b": X}, ("an array 'test', or an array 'x', or a single array", "it has ['a', 'b']")),
        ({"test": X, "age": np.zeros(4)}, ("array 'test' and conditions 'test_NAME'", "it also has ['age']")),
        ({"test": X, "test_age": np.zeros(3)}, ("test age length=3", "4, one for each")),
        ({"x": X, "age": np.zeros(3)}, ("shapes of arrays={'age': (3,)}",)),
        ({"x": X, "classes": np.full(4, 0.5)}, ("array classes=0.5", "whole numbers")),
        ({"x": X, "classes": np.arange(4), "class_names": np.array(["a"])}, ("x classes maximum=3", "below 1")),
        ({"x": X[:0]}, ("array x shape=(0, 2)", "empty")),
        ({"x": X.astype(int)}, ("array x dtype", "int64")),
        (
            {"x": X + np.array([0.0, np.inf]), "columns": np.array(["a", "b"])},
            ("array x NaN or infinite values=4", "is 'b', with 4"),
        ),
    ],
)
def test_read_rows_refuses_in_one_line(tmp_path: Path, arrays: dict[str, np.ndarray], words: tuple[str, ...]) -> None:
    with refused(*words):
        read_rows(write(tmp_path, **arrays), like=(2,))


def test_read_rows_refuses_other_files(tmp_path: Path) -> None:
    with refused(f"file='{tmp_path / 'none.npz'}'", "an existing .npz file"):
        read_rows(tmp_path / "none.npz")
    (tmp_path / "evil.npz").write_bytes(pickle.dumps({"x": 1}))
    with refused(f"file='{tmp_path / 'evil.npz'}': not a readable .npz file", "not a zip file"):
        read_rows(tmp_path / "evil.npz")
    with refused("file=", "x.npy has objects, which could run code"):
        read_rows(write(tmp_path, x=np.array([{}], dtype=object)))


def test_npz_refuses_other_files(tmp_path: Path) -> None:
    with refused("root=''", ".npz"):
        DATASETS.build("npz")
    with refused("none.npz", "existing"):
        DATASETS.build("npz", root=str(tmp_path / "none.npz"))
    root = write(tmp_path, a=np.random.default_rng(0).random((50, 2)))
    with refused("levels=300"):
        DATASETS.build("npz", root=write(tmp_path / "..", a=np.zeros((4, 2, 2), np.uint8)), levels=300)
    content = Path(root).read_bytes()
    for damaged in (content[:100], b"text", b"", content[:200] + b"\0" * 100 + content[300:]):
        Path(root).write_bytes(damaged)
        with refused(root, "not a readable .npz file"):
            DATASETS.build("npz", root=root)
    np.save(tmp_path / "one.npy", np.zeros((4, 2)))
    with refused("one.npy", "numpy.savez"):
        DATASETS.build("npz", root=str(tmp_path / "one.npy"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    with refused("other.zip", "a.txt is no array"):
        DATASETS.build("npz", root=str(tmp_path / "other.zip"))
    (tmp_path / "evil.npz").write_bytes(pickle.dumps({"train": 1}))
    with refused("evil.npz", "not a zip file"):
        DATASETS.build("npz", root=str(tmp_path / "evil.npz"))


# Toys


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_standardised_and_reproducible(name: str) -> None:
    size = 40000
    toy = DATASETS.build(name, num_samples=size, seed=4)
    assert toy.train.shape == toy.test.shape == (size, 2)
    assert toy.levels is None
    for split in (toy.train, toy.test):
        error = 5.0 * split.std(dim=0) / math.sqrt(size)
        assert bool((split.mean(dim=0).abs() < error).all())
        square = split.square().mean(dim=1)
        assert abs(square.mean() - 1.0) < 5.0 * square.std() / math.sqrt(size)
    again = DATASETS.build(name, num_samples=size, seed=4)
    assert torch.equal(toy.train, again.train)
    assert torch.equal(toy.test, again.test)
    other = DATASETS.build(name, num_samples=size, seed=5)
    assert not torch.equal(toy.train, other.train)
    assert not torch.equal(toy.train, toy.test)


def test_mixture_has_equal_modes_on_a_circle() -> None:
    toy = DATASETS.build("mixture", num_samples=8000, modes=5, std=0.0)
    places, counts = torch.unique((toy.train * 1000).round(), dim=0, return_counts=True)
    assert len(places) == 5
    assert bool((places.norm(dim=1) / 1000 - math.sqrt(2.0) < 1e-3).all())
    assert float(((counts - 1600.0).square() / 1600.0).sum()) < 23.5  # χ² with 4 degrees of freedom, p = 1e-4


def test_mixtures_classes_are_its_gaussians() -> None:
    toy = DATASETS.build("mixture", num_samples=500, modes=5, std=0.0)
    for x, classes in ((toy.train, toy.conditions["classes"][0]), (toy.test, toy.conditions["classes"][1])):
        angle = 2.0 * math.pi * classes / 5
        torch.testing.assert_close(x, math.sqrt(2.0) * torch.stack([angle.cos(), angle.sin()], dim=1))
    assert toy.num_classes == 5
    assert DATASETS.build("mixture", num_samples=1).num_classes == 8  # however few are drawn


def test_two_moons_classes_are_its_moons() -> None:
    toy = DATASETS.build("two_moons", num_samples=500, std=0.0)
    scale = math.sqrt(0.5 * (0.75 + 0.5625 - 1.0 / math.pi))
    centres = torch.tensor([[0.0, 0.0], [1.0, 0.5]])
    for x, classes in ((toy.train, toy.conditions["classes"][0]), (toy.test, toy.conditions["classes"][1])):
        from_centre = x * scale + torch.tensor([0.5, 0.25]) - centres[classes]
        torch.testing.assert_close(from_centre.norm(dim=1), torch.ones(500))
        assert torch.equal(from_centre[:, 1] > 0.0, classes == 0)
    assert toy.class_names == ("upper", "lower")


def test_swiss_roll_has_no_classes() -> None:
    assert DATASETS.build("swiss_roll", num_samples=5).conditions == {}


def test_classes_do_not_change_the_points_of_a_seed() -> None:
    """The points are those of the same draws made in the same order without keeping a class."""
    for sequence, split in zip(np.random.SeedSequence(3).spawn(2), ("train", "test"), strict=True):
        rng = np.random.default_rng(sequence)
        angle = 2.0 * math.pi * rng.integers(8, size=9) / 8
        x, y = np.cos(angle) + 0.1 * rng.standard_normal(9), np.sin(angle) + 0.1 * rng.standard_normal(9)
        expected = torch.from_numpy(np.stack([x, y], axis=1) / math.sqrt(0.5 + 0.1**2)).float()
        assert torch.equal(DATASETS.build("mixture", num_samples=9, seed=3).split(split).x, expected)


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("option", [{"num_samples": 0}, {"seed": -1}, {"seed": 0.5}, {"std": -0.1}, {"std": math.nan}])
def test_toys_refuse_bad_options(name: str, option: dict[str, float]) -> None:
    with refused(f"{next(iter(option))}="):
        DATASETS.build(name, **option)


def test_mixture_refuses_too_few_modes() -> None:
    with refused("modes=2", "at least 3"):
        DATASETS.build("mixture", modes=2)


# Training batches


@pytest.mark.parametrize("batch_size", [1, 3, 10, 25])
def test_train_batch_visits_each_example_once_an_epoch(batch_size: int) -> None:
    train = torch.arange(10.0)[:, None] * 7
    batches = [train_batch(train, batch_size, seed=0, step=step) for step in range(60)]
    for x, indices in batches:
        assert x.shape == (batch_size, 1)
        assert indices.shape == (batch_size,)
        assert torch.equal(x, train[indices])
    stream = torch.cat([indices for _, indices in batches])
    epochs = stream[: len(stream) // 10 * 10].reshape(-1, 10)
    assert bool((epochs.sort(dim=1).values == torch.arange(10)).all())
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == len(epochs)  # no order twice


def test_train_batch_is_a_function_of_seed_and_step() -> None:
    train = torch.arange(1, 1348)[:, None]
    forward = [train_batch(train, 100, 7, step)[0] for step in range(40)]
    _epoch_order.cache_clear()  # as in a new process
    for step in reversed(range(40)):
        assert torch.equal(train_batch(train, 100, 7, step)[0], forward[step])
    assert not torch.equal(train_batch(train, 100, 8, 0)[1], train_batch(train, 100, 7, 0)[1])
    forward[0].zero_()  # a batch is a copy
    assert int(train.min()) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((0, 0, 0), "batch_size=0"),
        ((2.0, 0, 0), "batch_size=2.0"),
        ((1, -1, 0), "seed=-1"),
        ((1, 0, -1), "step=-1"),
    ],
)
def test_train_batch_refuses_bad_numbers(arguments: tuple[int, int, int], word: str) -> None:
    with refused(word):
        train_batch(torch.zeros(3, 1), *arguments)
    with refused("(0, 1)"):
        train_batch(torch.zeros(0, 1), 1, 0, 0)
