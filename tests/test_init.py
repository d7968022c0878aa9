"""``train --init``: new runs that start from the weights of another, or of somebody else's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.commands.config_files import config_file
from sde_diffusion.commands.main import main
from sde_diffusion.config import build_network
from sde_diffusion.training import checkpoints
from tests.test_commands import refused

SMALL = ["--config.network.unet.channels=8", "--config.training.batch_size=2", "--device=cpu", "--quiet"]
STILL = ["--config.training.num_steps=1", "--config.training.learning_rate=1e-12", "--config.training.warmup_steps=0"]
"""One step so small that no weight of size 1 moves: AdamW's step of a weight is its rate at most, or a few times it."""


def train(workdir: Path, *flags: str) -> None:
    assert main(["train", f"--workdir={workdir}", *flags]) == 0


def weights(workdir: Path) -> dict[str, Tensor]:
    return checkpoints.read(workdir, "network").tensors["network"]


def provenance(workdir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workdir / "config.json").read_text())["provenance"]
    return found


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, of three steps."""
    folder = tmp_path_factory.mktemp("source")
    train(folder / "run", *SMALL, "--config.training.num_steps=3", "--config.denoiser.prediction=eps")
    return folder / "run"


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.allclose(tensor, expected[name], rtol=0.0, atol=1e-9) for name, tensor in found.items()
    )


def pictures(folder: Path, channels: int = 1, names: tuple[str, ...] = ("",)) -> Path:
    random = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(12):
            pixels = random.integers(0, 256, (8, 8, channels), dtype=np.uint8)
            Image.fromarray(pixels.squeeze()).save(folder / name / f"{i}.png")
    return folder


def on(folder: Path, channels: int = 1, size: int = 8) -> list[str]:
    data = [f"--config.data.root={folder}", "--config.data.name=image_folder"]
    return [*data, f"--config.data.image_folder.channels={channels}", f"--config.data.image_folder.image_size={size}"]


def test_a_run_goes_on_on_other_data(source: Path, tmp_path: Path) -> None:
    """It starts at the averaged weights, with the source's configuration but for the flags, and says where from."""
    run = tmp_path / "tuned"
    train(run, f"--init={source}", *on(pictures(tmp_path / "pictures")), *STILL, "--device=cpu", "--quiet")
    averaged = checkpoints.read(source, "network").tensors["ema"]
    assert close(weights(run), averaged)
    config = json.loads((run / "config.json").read_text())["config"]
    assert (config["network"]["unet"]["channels"], config["denoiser"]["prediction"]) == (8, "eps")
    assert (config["training"]["num_steps"], config["training"]["batch_size"]) == (1, 2)
    told = provenance(run)["init"]
    assert (told["given"], told["format"]) == (str(source), "sde-diffusion")
    assert told["sha256"] == checkpoints.read(source).digest
    assert sd.open_run(run, device="cpu").step == 1


def test_the_same_command_goes_on(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As if it had not been stopped, and the provenance stays; another source is refused."""
    begin = [f"--init={source}", "--config.training.num_steps=4", "--device=cpu", "--quiet"]
    begin.append("--config.training.schedule=constant")
    train(tmp_path / "whole", *begin)
    stopped = [*begin[:1], "--config.training.num_steps=2", *begin[2:]]
    train(tmp_path / "stopped", *stopped)
    first = provenance(tmp_path / "stopped")["init"]
    train(tmp_path / "stopped", *begin)
    assert provenance(tmp_path / "stopped")["init"] == first
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    train(tmp_path / "stopped", "--config.training.num_steps=5", "--device=cpu", "--quiet")
    assert provenance(tmp_path / "stopped")["init"] == first
    line = refused(capsys, "train", f"--workdir={tmp_path / 'stopped'}", f"--init={tmp_path / 'whole'}")
    assert f"expected {str(source)!r}, from which {tmp_path / 'stopped'} was begun; take a new --workdir" in line
    line = refused(capsys, "train", f"--workdir={source}", f"--init={tmp_path / 'whole'}")
    assert "was begun without" in line


def test_a_bare_state_dict_starts_a_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from sde_diffusion.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        "    config.network.unet.channels = 8\n    config.training.batch_size = 2\n    return config\n"
    )
    torch.manual_seed(0)
    state = {
        name: torch.rand_like(w) for name, w in build_network(config_file(str(file)), (1, 8, 8)).state_dict().items()
    }
    torch.save(state, tmp_path / "mine.pt")
    flags = [f"--init={tmp_path / 'mine.pt'}", f"--config={file}", *STILL, "--device=cpu", "--quiet"]
    train(tmp_path / "run", *flags)
    assert close(weights(tmp_path / "run"), state)
    assert provenance(tmp_path / "run")["init"]["format"] == "state dict"


def test_a_folder_of_diffusers_starts_a_run(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    from tests.test_unet2d import random_model, saved

    path, run = saved(tmp_path / "theirs", random_model()), tmp_path / "run"
    data = on(pictures(tmp_path / "pictures", channels=3), channels=3)
    train(run, f"--init={path}", *data, *STILL, "--config.training.batch_size=2", "--device=cpu", "--quiet")
    assert close(weights(run), sd.load_pretrained(path).net.state_dict())
    assert provenance(run)["init"]["scheduler"]["_class_name"] == "DDPMScheduler"


def test_a_run_that_comes_with_the_package_starts_one(tmp_path: Path) -> None:
    data = on(pictures(tmp_path / "pictures"), size=28)
    flags = ["--init=fashion_mnist", *data, *STILL, "--config.training.batch_size=2"]
    train(tmp_path / "run", *flags, "--device=cpu", "--quiet")
    assert provenance(tmp_path / "run")["init"]["given"] == "fashion_mnist"


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditional")
    data = on(pictures(folder / "pictures", names=("cats", "dogs")))
    classes = ["--config.network.name=unet", "--config.network.unet.num_classes=2"]
    train(folder / "run", *data, *SMALL, *classes, "--config.training.num_steps=1")
    return folder / "run"


@pytest.mark.parametrize(
    ("names", "channels", "message"),
    [
        (("birds", "cats", "dogs"), 1, "num_classes=2: expected 3, the classes of"),
        (("birds", "cats"), 1, "birds, cats'"),
        (("cats", "dogs"), 3, "stem.weight has shape (8, 1, 3, 3), not (8, 3, 3, 3)"),
    ],
)
def test_what_does_not_fit_is_named(
    conditional: Path,
    names: tuple[str, ...],
    channels: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = on(pictures(tmp_path / "pictures", channels, names), channels)
    line = refused(capsys, "train", f"--workdir={tmp_path / 'run'}", f"--init={conditional}", *data, "--quiet")
    assert message in line
    assert not (tmp_path / "run" / "config.json").exists()


def test_classes_of_the_same_names_go_on(conditional: Path, tmp_path: Path) -> None:
    data = on(pictures(tmp_path / "pictures", names=("cats", "dogs")))
    train(tmp_path / "run", f"--init={conditional}", *data, *STILL, "--device=cpu", "--quiet")


def test_bad_sources_are_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(*flags: str) -> str:
        return refused(capsys, "train", f"--workdir={tmp_path / 'run'}", *flags, "--quiet")

    (tmp_path / "mine.py").write_text(
        "from sde_diffusion.config import default_config\n\n\ndef get_config():\n    return default_config()\n"
    )
    assert "an existing file or folder" in line(f"--init={tmp_path / 'nowhere'}")
    assert "expected none beside --init" in line(f"--init={source}", f"--config={tmp_path / 'mine.py'}")
    assert "time.layers.1.weight has shape" in line(f"--init={source}", "--config.network.unet.channels=16")
    expected = "unexpected down.2.attention", "trained on data of shape (1, 28, 28), not (1, 8, 8)"
    told = line("--init=fashion_mnist", "--config.data=digits")  # it attends at heights that these never have
    assert all(part in told for part in expected)
