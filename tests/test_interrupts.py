"""Ctrl-C and SIGTERM: training saves the step that it has reached; at any moment, one line and no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sde_diffusion.commands.main import main
from sde_diffusion.training import checkpoints
from sde_diffusion.training.interrupts import Interrupts

FLAGS = [
    *("--device=cpu", "--quiet", "--config.network.unet.channels=8", "--config.training.batch_size=4"),
    *("--config.training.checkpoint_every=100000", "--config.training.schedule=constant"),
]


def started(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sde_diffusion", *arguments]
    # Whoever runs the tests in the background has them ignore Ctrl-C, and what they start.
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stderr=pipe, stdout=pipe, text=True, env=environment, preexec_fn=heard)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_training_saves_the_step_it_has_reached_and_goes_on_exactly(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Bit for bit what an uninterrupted run has at the same step."""
    run = tmp_path / "run"
    process = started("train", f"--workdir={run}", *FLAGS, "--config.training.num_steps=100000")
    deadline = time.monotonic() + 120.0
    while not (run / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == code
    [line] = [line for line in text.splitlines() if "sde-diffusion" in line]
    [folder] = checkpoints.existing(run)
    step = int(folder.name.removeprefix("step_"))
    assert f"stopped at step {step}, saved in {folder}; the same command goes on from there" in line
    assert "Traceback" not in text
    assert main(["train", f"--workdir={run}", *FLAGS, f"--config.training.num_steps={step + 3}"]) == 0
    whole = tmp_path / "whole"
    assert main(["train", f"--workdir={whole}", *FLAGS, f"--config.training.num_steps={step + 3}"]) == 0
    resumed, uninterrupted = (
        load_file(w / "checkpoints" / f"step_{step + 3:08d}" / "network.safetensors") for w in (run, whole)
    )
    assert all(bool((resumed[name] == uninterrupted[name]).all()) for name in uninterrupted)


@pytest.mark.parametrize("delay", [0.4, 0.8, 1.6])
def test_ctrl_c_while_starting_is_one_line(tmp_path: Path, delay: float) -> None:
    process = started("train", f"--workdir={tmp_path / 'run'}", *FLAGS, "--config.training.num_steps=100000")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert "Traceback" not in text
    assert process.returncode in (130, -signal.SIGINT)
    assert len(text.splitlines()) <= 1


def test_help_and_version_need_no_torch() -> None:
    for argument in ("--version", "--help"):
        code = "import sys; from sde_diffusion.__main__ import start; start(); print('torch' in sys.modules)"
        command = [sys.executable, "-c", code, argument]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert text.splitlines()[-1] == "False"


def test_the_second_signal_is_as_ever() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
