"""Steps whose loss or gradient is not finite change nothing, are counted and named, and end a training in time."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion.data import Dataset, Examples, train_batch
from sde_diffusion.records import read_record
from sde_diffusion.training import checkpoints, loop
from sde_diffusion.training.checkpoints import TrainingState
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.loop import TrainingOptions, make_optimizer
from sde_diffusion.training.skipped import look

N, SIZE, BAD = 24, 4, 17
HOW: dict[str, Any] = {"batch_size": SIZE, "schedule": "constant", "warmup_steps": 0, "device": "cpu"}


class Faulty(nn.Module):
    """Has no finite loss of examples that are ``bad``, or no finite gradient."""

    conditions = ("bad",)

    def __init__(self, of: str = "loss") -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 2))
        self.w, self.of = nn.Parameter(torch.ones(())), of

    def forward(self, x: Tensor, label: Tensor, bad: Tensor) -> Tensor:
        out: Tensor = self.layers(torch.cat([x, label[:, None]], dim=1))
        if self.of == "loss":
            return out / (1.0 - bad)[:, None]
        return out + ((1.0 - bad + 0.0 * self.w).sqrt() - (1.0 - bad))[:, None]  # + 0, whose slope at bad = 1 is NaN


def data(bad: list[int]) -> Dataset:
    x = torch.randn(N + 4, 2, generator=torch.Generator().manual_seed(0))
    marks = torch.zeros(N)
    marks[bad] = 1.0
    return Dataset("given", x[:N], x[N:], None, {"bad": (marks, torch.zeros(4))})


def tensors(workdir: Path, step: int) -> dict[str, Tensor]:
    folder = workdir / "checkpoints" / f"step_{step:08d}"
    found = {name: load_file(folder / f"{name}.safetensors") for name in ("network", "ema", "optimizer")}
    return {f"{name} {key}": value for name, own in found.items() for key, value in own.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("of", ["loss", "gradient"])
def test_a_skipped_step_changes_nothing_but_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], of: str, optimizer: str
) -> None:
    """Weights, averages and moments, bit for bit; the others move. The line names the example, its time and log SNR."""
    steps, given = 12, data([BAD])
    how = {**HOW, "optimizer": optimizer, "checkpoint_every": 1, "keep": steps, "log_every": 1, "weight_decay": 0.1}
    sd.fit(Faulty(of), given, steps=steps, workdir=tmp_path, quiet=True, **how)
    hit = [step for step in range(1, steps + 1) if BAD in train_batch(given.train, SIZE, 0, step - 1)[1]]
    assert 1 <= len(hit) < steps
    for step in range(2, steps + 1):
        before, after = tensors(tmp_path, step - 1), tensors(tmp_path, step)
        assert all(torch.equal(before[key], after[key]) for key in after) == (step in hit)
        assert all(value.isfinite().all() for value in after.values())
    state = read_record(tmp_path / "checkpoints" / f"step_{steps:08d}" / "state.json")
    assert state["skipped"] == len(hit)
    lines = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert len(lines) == len(hit)
    assert f"step {hit[0]} is skipped" in lines[0]
    assert "log SNR" in lines[0]
    if of == "loss":
        assert f"1 of {SIZE} examples have no finite loss: example {BAD} at t " in lines[0]


def test_resumed_equals_uninterrupted_with_skipped_steps(tmp_path: Path) -> None:
    how = {**HOW, "checkpoint_every": 5, "keep": 5, "log_every": 3, "quiet": True}
    sd.fit(Faulty(), data([BAD]), steps=15, workdir=tmp_path / "whole", **how)
    for steps in (5, 10, 15):
        sd.fit(Faulty(), data([BAD]), steps=steps, workdir=tmp_path / "parts", **how)
    whole, parts = (tensors(tmp_path / name, 15) for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    for key in ("skipped", "skipped_in_row"):
        one, other = (
            read_record(tmp_path / name / "checkpoints" / "step_00000015" / "state.json")[key]
            for name in ("whole", "parts")
        )
        assert one == other


@pytest.mark.parametrize("most", [0, 4])
def test_too_many_in_a_row_end_the_training(tmp_path: Path, most: int) -> None:
    """Also where the row began before the checkpoint that is gone on from."""
    how = {**HOW, "max_skipped": most, "log_every": 2, "quiet": True}
    text = rf"at step {most + 1}, as of {most + 1} in a row, and training\.max_skipped={most}: 4 of 4 examples have no"
    with pytest.raises(sd.InputError, match=f"{text}.*at t .*log SNR.*there is no checkpoint yet"):
        sd.fit(Faulty(), data(list(range(N))), steps=20, workdir=tmp_path / "a", **how)
    assert not checkpoints.existing(tmp_path / "a")
    if most:
        sd.fit(Faulty(), data(list(range(N))), steps=3, workdir=tmp_path / "b", **how)
        with pytest.raises(sd.InputError, match=text):
            sd.fit(Faulty(), data(list(range(N))), steps=20, workdir=tmp_path / "b", **how)


def test_a_row_ends_with_a_finite_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three, a finite one, two: five in all, and never more than three in a row. The mean is of the finite ones."""
    state = TrainingState(nn.Linear(1, 1), EMA(nn.Linear(1, 1)), torch.optim.SGD([nn.Parameter(torch.ones(1))]), 6)
    losses = [torch.tensor(value) for value in (torch.nan, torch.nan, torch.nan, 2.0, torch.nan, torch.nan)]
    assert look(losses, state, 3, lambda step: f"about {step}", tmp_path) == 2.0
    assert (state.skipped, state.skipped_in_row) == (5, 2)
    assert "step 6 is skipped" in (error := capsys.readouterr().err)
    assert "about 5; skipped are 2 in a row, 5 in all" in error
    state.step = 7
    assert look(losses[:1], state, 3, str, tmp_path) is None
    state.step = 8
    with pytest.raises(sd.InputError, match="at step 8, as of 4 in a row"):
        look(losses[:1], state, 3, str, tmp_path)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """A rate that no float32 holds makes them infinite in one step, with a finite loss and gradient before it."""
    how = {**HOW, "checkpoint_every": 1, "quiet": True}
    sd.fit(Faulty(), data([]), steps=2, workdir=tmp_path, **how)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "tensorb" not in str(path)}
    with pytest.raises(sd.InputError, match=r"network is not finite at step 3, in .*: not saved; .*step_00000002"):
        sd.fit(Faulty(), data([]), steps=4, workdir=tmp_path, learning_rate=1e39, override=True, **how)
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != "train.jsonl")
    assert [path.name for path in checkpoints.existing(tmp_path)] == ["step_00000001", "step_00000002"]


class Net(nn.Module):
    """A convolution that is told the time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 32, 3, padding=1), nn.Conv2d(32, 1, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(torch.cat([x, label.sin()[:, None, None, None].expand_as(x)], dim=1)))
        return out


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch, optimizer: str, read: bool) -> None:
    """On the meta device there are no numbers: whoever looks at one fails, as the control shows, and so would wait."""
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None)
    options = TrainingOptions(batch_size=SIZE, optimizer=optimizer)
    with torch.device("meta"):
        net = Net()
    state = TrainingState(net, EMA(net), make_optimizer(net, options))
    x = torch.zeros(SIZE, 1, 8, 8)
    batch = lambda step, noise: (Examples(x), torch.arange(SIZE))  # noqa: E731
    denoiser, objective = sd.Denoiser(net, sd.VPSDE()), sd.DenoisingScoreMatching()
    losses = partial(loop.losses_of_step, denoiser, objective, batch, SIZE, 0)

    def looking(step: int) -> tuple[Tensor, Tensor]:
        found, indices = losses(step)
        bool(found.isfinite().all())
        return found, indices

    if read:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            loop._step(looking, state, options)
        return
    for _ in range(3):
        assert loop._step(losses, state, options).shape == ()
    assert state.step == 3
