"""What is no data, condition, class or codec of a run: one line that says what to do, exit code 2, and no files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import samplers
import sde_diffusion as sd
from sde_diffusion.commands.main import main
from sde_diffusion.data import Dataset
from sde_diffusion.records import read_record, write_record
from tests.test_commands import refused, trained

__all__ = ["trained"]

FAST = ["--quiet", "--device=cpu", "--config.training.num_steps=2", "--config.training.batch_size=8"]
SIZE = ["--config.network=mlp", "--config.network.mlp.width=16"]
TOLD = [*SIZE, "--config.network.mlp.num_classes=2"]
SAMPLE = ["--quiet", "--device=cpu", "--num_samples=2", "--steps=2"]
SCORE = ["--quiet", "--device=cpu", "--num_samples=2", "--bound_draws=2", "--bound_steps=2", "--tolerance=0.1"]
SWEEP = ["--quiet", "--device=cpu", "--num_samples=70", "--samplers=ddim", "--steps=2"]
ROWS = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
LABELS = np.arange(30) % 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> dict[str, Path]:
    """Untrained enough: pictures, vectors told classes, told them always, told ten, and told nothing."""
    folder = tmp_path_factory.mktemp("runs")
    made = {
        "told": ["--config.data=two_moons", *TOLD],
        "always": ["--config.data=two_moons", *TOLD, "--config.training.label_dropout=0"],
        "eight": ["--config.data=mixture", *SIZE, "--config.network.mlp.num_classes=8"],
        "plain": ["--config.data=swiss_roll"],
    }
    for name, flags in made.items():
        assert main(["train", f"--workdir={folder / name}", *FAST, *flags]) == 0
    return {"pictures": trained, **{name: folder / name for name in made}}


@pytest.mark.parametrize(
    ("run", "arrays", "words"),
    [
        ("told", {"classes": [0, 1, 0]}, "rows of classes=3: expected 2, one for each sample; give --num_samples=3"),
        ("told", {"classes": [0, 7]}, "classes=7: expected a class from 0 to 1"),
        ("told", {"classes": [0, -1]}, "array classes minimum=-1: expected whole numbers from 0"),
        ("told", {"classes": [0.5, 1.0]}, "array classes=0.5: expected whole numbers, as classes are; 1 are not"),
        ("told", {"classes": ["a", "b"]}, "array classes dtype='<U1': expected numbers, as conditions are"),
        ("told", {"classes": [[0], [1]]}, "array classes shape=(2, 1): expected (2,), one class for each example"),
        ("told", {"classes": 1}, "array classes shape=(): expected (n, …), a row for each sample"),
        ("told", {"scale": [0.0, 1.0]}, "condition='scale': expected only classes, for the model is told nothing else"),
        ("plain", {"scale": [0.0, 1.0]}, "condition='scale': expected none, for the model is told nothing; leave it"),
        ("plain", {"scale": [0.0, np.nan]}, "array scale NaN or infinite values=1: expected none"),
    ],
)
def test_conditions_of_a_file(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, arrays: Any, words: str
) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    text = refused(capsys, "sample", f"--workdir={runs[run]}", *SAMPLE, f"--conditions={tmp_path / 'c.npz'}")
    assert words in text


def test_a_file_that_is_none_of_conditions(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = ["sample", f"--workdir={runs['told']}", *SAMPLE]
    assert "conditions='gone.npz': expected an existing .npz file" in refused(capsys, *sample, "--conditions=gone.npz")
    (tmp_path / "text.npz").write_text("0 1")
    assert "not a readable .npz file of plain arrays" in refused(
        capsys, *sample, f"--conditions={tmp_path / 'text.npz'}"
    )
    np.savez(tmp_path / "both.npz", classes=[0, 1])
    text = refused(capsys, *sample, "--classes=1", f"--conditions={tmp_path / 'both.npz'}")
    assert "classes='1': expected none, for there are classes among the conditions too; give one of the two" in text


@pytest.mark.parametrize("command", [["sample", *SAMPLE], ["likelihood", *SCORE], ["benchmark", *SWEEP]])
@pytest.mark.parametrize("value", ["7", "-1", "1.5", "middle", "0,,1"])
def test_classes_that_there_are_not(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], command: list[str], value: str
) -> None:
    name, *flags = command
    text = refused(capsys, name, f"--workdir={runs['told']}", *flags, f"--classes={value}")
    assert f"classes='{value}': expected numbers from 0 to 1, or one of upper, lower, with commas" in text
    text = refused(capsys, name, f"--workdir={runs['eight']}", *flags, f"--classes={value.replace('7', '8')}")
    assert "expected numbers from 0 to 7, with commas between several, or 'all'" in text  # they have no other names
    for other in ("plain", "pictures"):
        text = refused(capsys, name, f"--workdir={runs[other]}", *flags, f"--classes={value}")
        assert f"the network of {runs[other]} is not told classes; leave them out, or train one with" in text


def test_a_name_that_is_nearly_one(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, "sample", f"--workdir={runs['told']}", *SAMPLE, "--classes=uper")
    assert "did you mean 'upper'" in text


@pytest.mark.parametrize("command", [["sample", *SAMPLE], ["likelihood", *SCORE], ["benchmark", *SWEEP]])
def test_no_class_for_a_network_that_always_had_one(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    name, *flags = command
    text = refused(capsys, name, f"--workdir={runs['always']}", *flags, "--classes=none")
    assert "was never trained without a class (training.label_dropout=0); give --classes=0,1 or --classes=all" in text
    if name == "sample":
        assert refused(capsys, name, f"--workdir={runs['always']}", *flags) == text


def test_from_python(runs: dict[str, Path]) -> None:
    told, plain = (sd.open_run(runs[name], device="cpu") for name in ("told", "plain"))
    sampler = samplers.build("ddim", num_steps=2)
    for classes, words in (
        ([0, 1, 0], r"classes shape=\(3,\): expected \(2, \*\), a row for each of the batch"),
        (torch.tensor([0, 1, 0]), r"classes shape=\(3,\)"),
        (5, "classes=5: expected a class from 0 to 1"),
        ([0, -1], "classes=-1: expected a class from 0 to 1"),
        ([0.0, 1.0], r"classes='torch.float64 \(2,\)': expected whole numbers of shape \(2,\)"),
        ([True, False], r"classes='torch.bool \(2,\)'"),
        ([[0], [1]], r"classes='torch.int64 \(2, 1\)'"),
        (["upper", "lower"], r"classes=\['upper', 'lower'\]: expected numbers"),
        ([[0], [1, 2]], "expected numbers"),
        ("upper", "classes='upper': expected whole numbers"),
    ):
        with pytest.raises(sd.InputError, match=words):
            sampler.draw(told.denoiser, (2, 2), classes=classes)
        with pytest.raises(sd.InputError):
            told.sample(n=2, num_steps=2, conditions={"classes": classes}, quiet=True)
        with pytest.raises(sd.InputError, match=r"condition='classes': expected none|expected numbers"):
            sampler.draw(plain.denoiser, (2, 2), classes=classes)
    with pytest.raises(sd.InputError, match=r"classes shape=\(2,\): expected \(3, \*\)"):
        told.likelihood(torch.zeros(3, 2), classes=torch.tensor([0, 1]))
    none = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(sd.InputError, match=r"d.train classes length=2: expected 3, one for each example"):
        Dataset("d", torch.zeros(3, 2), torch.zeros(2, 2), None, {"classes": (none, none)})


def test_classes_as_an_array_or_a_list_are_the_same(runs: dict[str, Path]) -> None:
    told = sd.open_run(runs["told"], device="cpu")
    how: dict[str, Any] = {"n": 2, "num_steps": 2, "quiet": True}
    whole = told.sample(classes=torch.tensor([0, 1]), **how).x
    assert torch.equal(told.sample(classes=np.array([0, 1]), **how).x, whole)
    assert torch.equal(told.sample(conditions={"classes": [0, 1]}, **how).x, whole)
    assert torch.equal(told.sample(classes="upper,lower", **how).x, whole)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--config.data=swiss_roll", *TOLD],
            "data='swiss_roll': expected data with the condition 'classes', which the network is told; these have none",
        ),
        (
            ["--config.data=two_moons", *SIZE, "--config.network.mlp.num_classes=3"],
            "num_classes=3: expected 2, the classes of two_moons",
        ),
        (["--config.data=two_moons", *TOLD, "--config.training.label_dropout=1"], "label_dropout=1.0: expected less"),
        (
            ["--config.network=unet2d", "--config.network.unet2d.num_classes=10"],
            "training.label_dropout=0.1: expected 0, for the network cannot be told that there is no class",
        ),
        (
            ["--config.data=two_moons", "--config.codec.name=grey_levels"],
            "codec.name='grey_levels': expected a codec for two_moons, which has no grey levels; take standardised",
        ),
        (
            ["--config.codec.name=identity"],
            "codec.name='identity': expected a codec for digits, which has grey levels; take grey_levels",
        ),
        (
            ["--config.codec.name=standardised"],
            "codec.name='standardised': expected a codec for digits, which has grey levels; take grey_levels",
        ),
        (
            ["--config.data=two_moons", "--config.training.flip=True"],
            "training.flip=True: expected False, for vectors have no mirror",
        ),
        (["--config.network.unet.dims=1"], "dims=1: expected 2, for there are as many sides in shape (1, 8, 8), or 0"),
        (["--config.data=two_moons", "--config.network=unet"], "for vectors there is --config.network.name=mlp"),
        (
            ["--config.network.ddpmpp.num_classes=2"],
            "expected config.network to be 'ddpmpp', for 'auto' (unet or mlp) does not read it; give "
            "--config.network=ddpmpp too",
        ),
        (
            ["--config.network.mlp.num_classes=10"],
            "network.mlp.num_classes=10: expected 0, for network 'auto' is 'unet' for images; give "
            "--config.network.unet.num_classes=10, or --config.network=mlp",
        ),
        (
            ["--config.guidance.classifier_free.scale=3"],
            "expected config.guidance to be 'classifier_free', for 'none' does not read it; give "
            "--config.guidance=classifier_free too",
        ),
    ],
)
def test_what_cannot_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert words in refused(capsys, "train", f"--workdir={tmp_path / 'run'}", *FAST, *flags)
    assert not list(tmp_path.rglob("config.json"))


def spoilt(column: int, rows: slice, value: float) -> np.ndarray:
    data = ROWS.copy()
    data[rows, column] = value
    return data


NAMES = np.array(["mass", "height"])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": spoilt(1, slice(1), np.nan), "columns": NAMES}, "the first column that has them is 'height', with 1"),
        ({"x": spoilt(0, slice(2), np.inf), "columns": NAMES}, "the first column that has them is 'mass', with "),
        ({"x": spoilt(1, slice(1), np.nan)}, "the first column that has them is number 1 (counted from 0), with 1"),
        ({"x": spoilt(1, slice(None), 3.0), "columns": NAMES}, "column height (always 3): constant"),
        ({"x": ROWS, "classes": np.full(30, 0.5)}, "array classes=0.5: expected whole numbers, as classes are"),
        ({"x": ROWS, "classes": -LABELS}, "x classes minimum=-1: expected whole numbers from 0"),
        ({"x": ROWS, "classes": LABELS, "class_names": ["a"]}, "x classes maximum=1: expected below 1, the number"),
        ({"x": ROWS, "classes": LABELS[1:]}, "{'classes': (29,)}: expected (30, …), one value for each example of 'x'"),
        ({"x": ROWS, "scale": np.full(30, np.nan)}, "x scale NaN or infinite values=30: expected none"),
        ({"x": ROWS.astype(np.int64)}, "array x dtype='int64': expected uint8 (images) or floating point (vectors)"),
        ({"x": ROWS.astype(np.uint8)}, "uint8 are pictures; convert other data to floats"),
    ],
)
def test_files_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    flags = [*FAST, "--config.data=npz", f"--config.data.root={tmp_path / 'data.npz'}"]
    assert words in refused(capsys, "train", f"--workdir={tmp_path / 'run'}", *flags)


def test_a_folder_of_pictures_of_many_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, size in enumerate([(8, 8), (8, 9), (10, 8), (8, 8)]):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", size).save(tmp_path / "pictures" / f"{i}.png")
    where = [f"--config.data.root={tmp_path / 'pictures'}", "--config.data.image_folder.image_size=8"]
    flags = [*FAST, "--config.data=image_folder", *where, "--config.data.image_folder.fit=none"]
    text = refused(capsys, "train", f"--workdir={tmp_path / 'run'}", *flags)
    assert "only pictures of 8×8 pixels (height×width), not 1.png (9×8), 2.png (8×10); resize these" in text


@pytest.mark.parametrize(
    ("run", "arrays", "flags", "words"),
    [
        (
            "told",
            {"x": ROWS},
            [],
            "give --classes=0 for one class or --classes=none, or a file with an array 'classes'",
        ),
        ("always", {"x": ROWS}, [], "give --classes=0 for one class, or a file with an array 'classes'"),
        ("told", {"x": ROWS}, ["--classes=0,1"], "classes='0,1': expected one class, given which all examples"),
        ("told", {"x": ROWS, "classes": 5 * LABELS}, [], "classes=5: expected a class from 0 to 1"),
        ("told", {"x": ROWS, "classes": 0.5 * LABELS}, [], "array classes=0.5: expected whole numbers"),
        ("plain", {"x": ROWS[:, :1]}, [], "array x shape=(30, 1): expected (N, 2), as expected of an example"),
        ("plain", {"x": ROWS.astype(int)}, [], "array x dtype='int64': expected uint8 (images) or floating point"),
        ("plain", {"x": np.zeros((9, 8, 8), np.uint8)}, [], "array x shape=(9, 1, 8, 8): expected (N, 2)"),
        (
            "pictures",
            {"x": np.zeros((9, 1, 8, 8), np.float32)},
            [],
            "dtype=torch.float32: expected uint8, grey levels 0 to 16, as the run was trained on",
        ),
        ("pictures", {"x": np.full((9, 8, 8), 200, np.uint8)}, [], "array x maximum=200: expected grey levels 0 to 16"),
        ("plain", {"x": ROWS}, ["--against=digits"], "flags='--data --against': expected one of --image, --data"),
    ],
)
def test_rows_to_score(
    runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run: str,
    arrays: dict[str, Any],
    flags: list[str],
    words: str,
) -> None:
    np.savez(tmp_path / "rows.npz", **arrays)
    data = f"--data={tmp_path / 'rows.npz'}"
    assert words in refused(capsys, "likelihood", f"--workdir={runs[run]}", *SCORE, data, *flags)


def test_rows_of_other_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "data.npz", x=ROWS, columns=NAMES)
    run = f"--workdir={tmp_path / 'run'}"
    assert main(["train", run, *FAST, "--config.data=npz", f"--config.data.root={tmp_path / 'data.npz'}"]) == 0
    np.savez(tmp_path / "rows.npz", x=ROWS, columns=NAMES[::-1])
    text = refused(capsys, "likelihood", run, *SCORE, f"--data={tmp_path / 'rows.npz'}")
    assert "columns='height, mass': expected mass, height, as the model was trained on" in text


def test_another_codec_than_that_of_the_run(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    for run, flag, words in (
        ("plain", "name=identity", "codec.name='identity'"),
        ("plain", "name=grey_levels", "codec.name='grey_levels'"),
        ("pictures", "grey_levels.dequantise=False", "codec.grey_levels.dequantise=False"),
    ):
        for command in (["sample", *SAMPLE], ["train", "--quiet", "--config.training.num_steps=4"]):
            name, *flags = command
            text = refused(capsys, name, f"--workdir={runs[run]}", *flags, f"--config.codec.{flag}")
            assert words in text
            assert "take another workdir" in text


@pytest.mark.parametrize(
    ("run", "change", "words"),
    [
        ("plain", {"name": None}, "codec.name=None: expected one of grey_levels, identity, standardised"),
        ("plain", {"name": "gone"}, "codec.name='gone': expected one of"),
        ("plain", {"more": 1}, "fields of codec 'standardised'='mean, more, std': expected mean, std"),
        ("plain", {"mean": [0.0]}, "number of means and of standard deviations=(1, 2)"),
        (
            "plain",
            {"mean": [0.0], "std": [1.0]},
            "codec='statistics of 1 channels': expected those of data of shape (1, 2)",
        ),
        ("plain", {"mean": [None, 0.0]}, "mean=None: expected a finite number"),
        ("plain", {"mean": 3}, "mean=3: expected a tuple of numbers"),
        ("plain", {"std": [0.0, 1.0]}, "std=0.0: expected a number above 0"),
        ("pictures", {"levels": 256}, "levels=256: expected 17, the number of grey levels of the run's data"),
        ("pictures", {"levels": "x"}, "levels='x': expected a whole number of at least 2"),
    ],
)
def test_a_damaged_codec(
    runs: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    run: str,
    change: dict[str, Any],
    words: str,
) -> None:
    """However it came about: sealed again, so that nothing but the codec itself tells."""
    folder = Path(shutil.copytree(runs[run], tmp_path / "run"))
    content = read_record(folder / "config.json")
    content["data"]["codec"] |= change
    write_record(folder / "config.json", content)
    for command in (["sample", *SAMPLE], ["train", "--quiet", "--config.training.num_steps=4"]):
        name, *flags = command
        text = refused(capsys, name, f"--workdir={folder}", *flags)
        assert f"{folder / 'config.json'}: data.codec cannot be used ({words}" in text
        assert "restore the file" in text
