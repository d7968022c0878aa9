"""What does not fit into memory is one line, before memory is taken where that can be told; none is taken here."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
from sde_diffusion import memory
from sde_diffusion.memory import exhausted, require_memory, size_text
from sde_diffusion.training.room import COPIES, require_room
from tests.test_commands import refused
from tests.test_resume import SMALL

GB = 2.0**30


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> float:
    """A machine with 10 MB."""
    monkeypatch.setattr(memory, "available", lambda device="cpu": 10.0 * 2**20)
    return 10.0 * 2**20


@pytest.mark.parametrize("flag", ["--config.training.batch_size=1000000000", "--batch_size=999999999999999999"])
def test_a_batch_that_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    flags = ["--device=cpu", "--quiet", flag]
    text = refused(capsys, "train", f"--workdir={tmp_path / 'run'}", *flags)
    assert "training.batch_size=" in text
    assert "GiB that are free" in text
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("network.mlp.width=100000000", "network.name='mlp': expected what fits"),
        ("network.mlp.width=100000000000", "network.name='mlp': cannot be built"),
        ("network.mlp.num_classes=100000000000000", "network.name='mlp': expected what fits"),
        ("data.two_moons.num_samples=1000000000000", "num_samples=1000000000000: expected what fits"),
    ],
)
def test_sizes_that_no_machine_has(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, words: str) -> None:
    key = flag.partition("=")[0]
    others = [f for f in SMALL if key not in f]
    assert words in refused(capsys, "train", f"--workdir={tmp_path}", *others, f"--config.{flag}")


@pytest.mark.parametrize("width", [16, 64])
def test_what_an_example_needs_is_measured(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Of a linear map and a square: what goes into either. A batch fits as long as that of all does."""
    net = nn.Linear(width, width)
    asked: list[int] = []

    def losses(n: int) -> Tensor:
        asked.append(n)
        out: Tensor = net(torch.zeros(n, width)).square().mean(dim=1)
        return out

    each, weights = 2 * 4 * width, (COPIES - 1) * 4 * (width * width + width)
    for spare, fits in ((0, True), (-1, False)):
        have = float(weights + 1000 * each + spare)
        monkeypatch.setattr(memory, "available", lambda device="cpu", have=have: have)
        if fits:
            require_room("mine", net, (1,), 1000, losses)
        else:
            with pytest.raises(sd.InputError, match=r"training\.batch_size=1000: expected what fits"):
                require_room("mine", net, (1,), 1000, losses)
    assert asked == [1, 2, 1, 2]
    assert net.training


def test_an_objective_that_takes_no_two_examples_is_trained_nevertheless() -> None:
    def losses(n: int) -> Tensor:
        raise ValueError("not so few")

    require_room("mine", nn.Linear(2, 2), (2,), 1000, losses)


def test_drawing_and_scoring_that_do_not_fit(free: float) -> None:
    law = sd.Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]])
    denoiser = law.denoiser(sd.VPSDE())
    with pytest.raises(sd.InputError, match=r"shape=\(1000000000, 2\): expected what fits .* lower the batch size"):
        samplers.build("ddim", num_steps=2).draw(denoiser, (10**9, 2))
    with pytest.raises(sd.InputError, match=r"points of a grid=1000000000: .* take fewer steps"):
        samplers.build("ddim", num_steps=10**9).draw(denoiser, (2, 2))
    with pytest.raises(sd.InputError, match="probes=1000000000: expected what fits"):
        sd.log_likelihood(denoiser, torch.zeros(2, 2), probes=10**9)


ERRORS = [
    lambda: torch.empty(10**14),
    lambda: torch.empty(10**19),
    lambda: torch.empty(2**62, 8),
    lambda: np.empty(10**15),
    lambda: np.empty(10**19),
    lambda: np.zeros((2**40, 2**40)),
    lambda: [0] * 10**19,
    lambda: bytearray(10**17),
]


@pytest.mark.parametrize("ask", ERRORS)
def test_what_libraries_say_of_memory_is_understood(ask: Callable[[], object]) -> None:
    with pytest.raises(Exception) as caught:
        ask()
    assert "not enough memory: " in exhausted(caught.value)
    assert "free on this machine" in exhausted(caught.value)


OTHERS = [ValueError("no such file"), RuntimeError("shape mismatch"), OverflowError("math range error")]


@pytest.mark.parametrize("error", OTHERS)
def test_other_errors_are_left_alone(error: Exception) -> None:
    assert exhausted(error) == ""


def test_a_container_has_what_it_may_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   4000000 kB\nSwapFree:  1000000 kB\n")
    monkeypatch.setattr(memory, "_process_limit", list)
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "LIMITS", (tmp_path / "no", tmp_path / "max"))
    assert memory.available() == 5_000_000 * 1024
    (tmp_path / "max").write_text("max\n")
    assert memory.available() == 5_000_000 * 1024
    (tmp_path / "max").write_text("1000000\n")
    assert memory.available() == 1_000_000
    monkeypatch.setattr(memory, "MEMORY", tmp_path / "no")
    monkeypatch.setattr(memory, "LIMITS", ())
    assert memory.available() == math.inf
    require_memory("n", 1, 1e30, "it")
    assert size_text(3 * GB) == "3 GiB"
