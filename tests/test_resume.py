"""Going on with a run: another model is refused, other steps only if they are meant, and all else may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from torch import nn

import sde_diffusion as sd
from sde_diffusion.commands.main import main
from sde_diffusion.config import default_config
from sde_diffusion.runs.resume import FREE, OF_STEPS
from sde_diffusion.stored_config import load_config, value_of
from sde_diffusion.training import checkpoints
from tests.test_commands import refused

SMALL = [
    *("--quiet", "--device=cpu", "--config.data.name=two_moons", "--config.network.mlp.width=16"),
    *("--config.training.batch_size=8", "--config.training.num_steps=2"),
]


def on(workdir: Path, *flags: str, steps: int = 4) -> int:
    return main(
        ["train", f"--workdir={workdir}", "--quiet", "--device=cpu", f"--config.training.num_steps={steps}", *flags]
    )


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["train", f"--workdir={tmp_path / 'run'}", *SMALL]) == 0
    capsys.readouterr()
    return tmp_path / "run"


def config(workdir: Path) -> bytes:
    return (workdir / "config.json").read_bytes()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("sde=ve", "sde.name='ve' (stored 'vp')"),
        ("sde.vp.beta_max=10.0", "sde.vp.beta_max=10.0 (stored 20.0)"),
        ("denoiser.prediction=eps", "denoiser.prediction='eps' (stored 'v')"),
        ("denoiser.noise_label=log_sigma", "denoiser.noise_label.name='log_sigma' (stored 'log_snr')"),
        ("denoiser.sigma_data=0.5", "denoiser.sigma_data=0.5 (stored 0.0)"),
        ("network=unet", "network.name='unet' (stored 'mlp')"),
        ("network.mlp.width=32", "network.mlp.width=32 (stored 16)"),
        ("codec=identity", "codec.name='identity' (stored 'standardised')"),
        ("objective.denoising.weighting=simple", "objective.denoising.weighting.name='simple' (stored 'edm')"),
        ("objective.denoising.times=uniform", "objective.denoising.times.name='uniform' (stored 'stratified')"),
        ("data=swiss_roll", "data.name='swiss_roll' (stored 'two_moons')"),
        ("data.two_moons.std=0.25", "data.two_moons.std=0.25 (stored "),
    ],
)
def test_another_model_is_refused_even_if_it_is_meant(
    run: Path, capsys: pytest.CaptureFixture[str], flag: str, words: str
) -> None:
    before = config(run)
    flags = [f"--config.{flag}", "--device=cpu", "--quiet", "--config.training.num_steps=4"]
    text = refused(capsys, "train", f"--workdir={run}", *flags, "--override")
    assert words in text
    assert "take another workdir" in text
    assert config(run) == before
    assert checkpoints.newest(run).name == "step_00000002"


def test_all_keys_are_named_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--config.sde=subvp", "--config.denoiser.prediction=x0", "--config.network.mlp.width=8"]
    text = refused(capsys, "train", f"--workdir={run}", *flags)
    for words in ("sde.name='subvp'", "denoiser.prediction='x0'", "network.mlp.width=8"):
        assert words in text


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.training.learning_rate=0.5", "training.learning_rate=0.5 (stored 0.005)"),
        ("--config.training.batch_size=4", "training.batch_size=4 (stored 8)"),
        ("--batch_size=4", "training.batch_size=4 (stored 8)"),
        ("--config.training.optimizer=muon", "training.optimizer='muon' (stored 'adamw')"),
        ("--config.training.schedule=constant", "training.schedule='constant' (stored 'cosine')"),
        ("--config.training.ema_decay=0.5", "training.ema_decay=0.5 (stored 0.99)"),
        ("--seed=3", "seed=3 (stored 0)"),
        ("--config.seed=3", "seed=3 (stored 0)"),
    ],
)
def test_other_steps_are_taken_if_they_are_meant(
    run: Path, capsys: pytest.CaptureFixture[str], flag: str, words: str
) -> None:
    before = config(run)
    text = refused(capsys, "train", f"--workdir={run}", "--device=cpu", "--quiet", flag)
    assert words in text
    assert "--override" in text
    assert config(run) == before
    assert on(run, flag, "--override") == 0
    assert f"goes on with {words}" in capsys.readouterr().err
    assert checkpoints.newest(run).name == "step_00000004"
    assert on(run, steps=6) == 0  # stored by now: it goes on as it was told
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "flag",
    [
        "--config.training.keep=9",
        "--config.training.log_every=1",
        "--config.training.checkpoint_every=1",
        "--config.training.max_skipped=3",
        "--config.sampler=heun",
        "--config.sampler.heun.num_steps=3",
        "--config.denoiser.thresholding=static",
        "--config.guidance=classifier_free",
        "--config.precision=bfloat16",
        "--config.layout=contiguous",
        "--config.fused_attention=False",
    ],
)
def test_what_is_not_of_the_steps_may_always_change(run: Path, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    assert on(run, flag) == 0
    assert capsys.readouterr().err == ""
    key, _, value = flag.removeprefix("--config.").partition("=")
    found = value_of(load_config(run), key)
    assert str(found.name if isinstance(found, ConfigDict) else found) == value


def test_every_key_is_of_one_kind() -> None:
    """Of what is free each key is there; of training, what is left needs leave; a new section is of the model."""
    whole = default_config()
    for key in FREE:
        node: Any = whole
        for part in key.rstrip(".").split("."):
            assert part in node, key
            node = node[part]
    sections = {key.split(".")[0] for key in (*FREE, *OF_STEPS)} - {"denoiser"}
    assert set(whole) - sections == {"data", "codec", "sde", "network", "denoiser", "objective"}


def test_a_file_counts_as_given(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole, with "auto" for what the data chose; flags change it."""
    file, same = tmp_path / "my.yaml", "data: {name: two_moons}\nnetwork: {name: auto, mlp: {width: 16}}\n"
    file.write_text(f"{same}training: {{batch_size: 8, num_steps: 3}}\n")
    assert on(run, f"--config={file}", steps=3) == 0
    assert capsys.readouterr().err == ""
    file.write_text(f"{same}training: {{batch_size: 4}}\nseed: 7\n")
    text = refused(capsys, "train", f"--workdir={run}", f"--config={file}", "--quiet")
    assert "seed=7 (stored 0), training.batch_size=4 (stored 8)" in text
    assert "seed=7" not in refused(capsys, "train", f"--workdir={run}", f"--config={file}", "--seed=0", "--quiet")
    assert on(run, f"--config={file}", "--override") == 0
    assert (load_config(run).seed, load_config(run).training.batch_size) == (7, 4)
    file.write_text(f"{same}sde: {{name: cosine}}\n")
    assert "sde.name='cosine'" in refused(capsys, "train", f"--workdir={run}", f"--config={file}", "--quiet")


def test_tour_asks_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "sde.name='ve' (stored 'vp')" in refused(capsys, "tour", f"--workdir={run}", "--config.sde=ve", "--quiet")
    assert "seed=5 (stored 0)" in refused(capsys, "tour", f"--workdir={run}", "--seed=5", "--quiet")


@pytest.mark.parametrize(("first", "then"), [("adamw", "muon"), ("muon", "adamw")])
def test_moments_of_another_optimiser_start_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: str, then: str
) -> None:
    """Weights and averages go on; a step with new moments is one of a new optimiser on the same weights."""
    assert main(["train", f"--workdir={tmp_path}", *SMALL, f"--config.training.optimizer={first}"]) == 0
    assert on(tmp_path, f"--config.training.optimizer={then}", "--override", steps=3) == 0
    assert f"trained with {first}; the moments of {then} start anew" in capsys.readouterr().err
    found = checkpoints.read(tmp_path, "optimizer")
    assert found.optimizer == then
    steps = {key: float(value) for key, value in found.tensors["optimizer"].items() if key.endswith(".step")}
    assert max(steps.values()) == 1.0
    assert on(tmp_path, steps=4) == 0
    assert capsys.readouterr().err == ""


def test_data_that_have_moved_are_taken_if_it_is_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    first, second = tmp_path / "first.npz", tmp_path / "second.npz"
    np.savez(first, x=np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    flags = ["--quiet", "--device=cpu", "--config.data.name=npz", "--config.training.batch_size=4"]
    run = tmp_path / "run"
    begin = ["train", f"--workdir={run}", *flags, "--config.training.num_steps=2"]
    assert main([*begin, f"--config.data.root={first}"]) == 0
    first.rename(second)
    assert "data.root=" in refused(capsys, "train", f"--workdir={run}", f"--config.data.root={second}", "--quiet")
    assert on(run, f"--config.data.root={second}", "--override") == 0


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(torch.cat([x, label[:, None]], dim=1))
        return out


def test_fit_asks_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how: dict[str, Any] = {"workdir": tmp_path, "device": "cpu", "quiet": True, "batch_size": 4}
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    sd.fit(Net(), x, steps=2, **how)
    before = config(tmp_path)
    with pytest.raises(sd.InputError, match=r"not denoiser\.prediction='x0' \(stored 'eps'\)"):
        sd.fit(Net(), x, steps=4, prediction="x0", override=True, **how)
    with pytest.raises(
        sd.InputError, match=r"training\.learning_rate=0\.5 \(stored 0\.0002\); to mean it .*override=True"
    ):
        sd.fit(Net(), x, steps=4, learning_rate=0.5, **how)
    assert config(tmp_path) == before
    assert sd.fit(Net(), x, steps=3, **how).step == 3
    assert sd.fit(Net(), x, steps=4, seed=2, learning_rate=0.5, override=True, **how).step == 4
    assert "goes on with seed=2 (stored 0), training.learning_rate=0.5" in capsys.readouterr().err


def test_what_fails_before_its_first_checkpoint_leaves_the_run_as_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where steps have been taken: config.json is of what the newest checkpoint was trained with."""
    before = config(run)
    monkeypatch.setattr(checkpoints, "save", lambda *_: (_ for _ in ()).throw(sd.InputError("no room")))
    assert on(run, "--seed=3", "--override") == 2
    assert config(run) == before


def test_a_new_run_has_its_configuration_after_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "save", lambda *_: (_ for _ in ()).throw(sd.InputError("no room")))
    assert main(["train", f"--workdir={tmp_path / 'run'}", *SMALL]) == 2
    assert (tmp_path / "run" / "config.json").exists()
    assert main(["train", f"--workdir={tmp_path / 'other'}", *SMALL, "--config.network.mlp.width=0"]) == 2
    assert not (tmp_path / "other" / "config.json").exists()
