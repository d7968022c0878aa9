"""The command line: swapping parts from flags, help, and bad input as one line with exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import samplers
from sde_diffusion.commands.main import COMMANDS, main
from sde_diffusion.records import read_record
from tests.test_training import SMALL, draw_of, train

DDIM = {"ddim": samplers.config("ddim")}
"""All that a run stores of samplers when nobody has chosen another."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    assert train(workdir, "--config.training.num_steps=2") == 0
    return workdir


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail; returns its one line."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("sde-diffusion: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return captured.err


def sample(workdir: Path, *flags: str) -> int:
    return main(["sample", f"--workdir={workdir}", "--quiet", "--device=cpu", "--num_samples=3", *flags])


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_from_flags(trained: Path, name: str) -> None:
    steps = ["--steps=3"] if "num_steps" in samplers.config(name) else []
    assert sample(trained, f"--sampler={name}", *steps) == 0


def test_options_from_flags_reach_the_sampler(trained: Path) -> None:
    assert sample(trained, "--sampler=pc", "--steps=4", "--config.sampler.pc.snr=0.2", "--seed=9", "--trajectory") == 0
    facts = read_record(draw_of(trained, "pc_4_n3_seed9", ".json"))
    assert "snr=0.2" in facts["sampler"]
    assert facts["nfe"] == 7
    for end in (".png", "_trajectory.png"):
        assert draw_of(trained, "pc_4_n3_seed9", end).read_bytes()[:4] == b"\x89PNG"
    assert json.loads((trained / "config.json").read_text())["config"]["sampler"] == {"name": "ddim", **DDIM}


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["predictor=ddim"], ["predictor=DDIM(", "eta=0.0", "LangevinCorrector(snr=0.16"]),
        (["predictor.name=ddim", "predictor.ddim.eta=0.5"], ["predictor=DDIM(", "eta=0.5", "snr=0.16"]),
        (["snr=0.3"], ["ReverseDiffusion(", "LangevinCorrector(snr=0.3"]),
        (
            ["corrector.langevin.snr=0.2", "corrector.langevin.step_rule=batch_norms"],
            ["LangevinCorrector(snr=0.2", "batch"],
        ),
        (["corrector.langevin.step_rule=batch_norms", "snr=0.4"], ["LangevinCorrector(snr=0.4", "batch_norms"]),
        (["corrector=none", "predictor=identity"], ["IdentityPredictor", "corrector='none'"]),
    ],
)
def test_parts_of_a_composite_from_flags(trained: Path, flags: list[str], parts: list[str], tmp_path: Path) -> None:
    """By their name alone, or with options of their own."""
    given = [f"--config.sampler.pc.{flag}" for flag in flags]
    assert sample(trained, "--sampler=pc", "--steps=2", f"--out={tmp_path}", *given) == 0
    facts = read_record(tmp_path / "samples.json")
    for part in parts:
        assert part in facts["sampler"]


def test_batch_size_does_not_change_the_pictures(trained: Path, tmp_path: Path) -> None:
    drawn = []
    for size in (1, 2, 3):
        assert sample(trained, "--steps=3", f"--batch_size={size}", f"--out={tmp_path / str(size)}") == 0
        drawn.append(np.load(tmp_path / str(size) / "samples.npz")["x"])
    np.testing.assert_allclose(drawn[1], drawn[0], atol=1e-5)
    np.testing.assert_allclose(drawn[2], drawn[0], atol=1e-5)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["help"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert all(name in text for name in COMMANDS)
    assert main(["--version"]) == 0
    capsys.readouterr()
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert COMMANDS[name] in text
        assert "--config" in text


def test_samplers_prints_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samplers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == samplers.names()
    assert all("20" in line for line in lines[1:])  # every line ends in its reference


def test_verify_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--sampler=heun", "--sde=vp", "--quiet"]) == 0
    assert "1 of 1 certified" in capsys.readouterr().out


def test_verify_fails_a_wrong_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    """A first-order scheme that claims order 2, and loses a fifth of its noise, is found out; exit code 1."""
    from dataclasses import dataclass

    @samplers.register("test_only_wrong")
    @dataclass(frozen=True, kw_only=True)
    class Wrong(samplers.EulerMaruyama):
        """Euler-Maruyama with too little noise."""

        order = 2

        def step(self, denoiser, x, t, s, state, noise):  # type: ignore[no-untyped-def]
            return super().step(denoiser, x, t, s, state, lambda x, t, s: 0.8 * noise(x, t, s))

    try:
        assert main(["verify", "--sampler=test_only_wrong", "--sde=vp", "--quiet"]) == 1
    finally:
        samplers.SAMPLERS._entries.pop("test_only_wrong")
    text = capsys.readouterr().out
    assert "is below 2" in text
    assert "spread off (p = " in text
    assert "Correct code fails with a probability of 0.001, whatever the seed: by a p below 0.0003." in text


@pytest.mark.slow
def test_verify_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--quiet"]) == 0


def test_config_file_and_its_workdir(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "my.py"
    file.write_text(
        "from sde_diffusion.config import default_config\n\n\ndef get_config():\n"
        "    config = default_config()\n    config.sde.name = 'subvp'\n    return config\n"
    )
    run = tmp_path / "run"
    assert train(run, f"--config={file}", "--config.training.num_steps=2") == 0
    assert json.loads((run / "config.json").read_text())["config"]["sde"]["name"] == "subvp"
    text = refused(capsys, "train", f"--workdir={run}", f"--config={file}")
    assert "not network.unet.channels=24 (stored 8)" in text
    assert "it differs in" in refused(capsys, "sample", f"--workdir={run}", f"--config={file}")
    file.write_text("def get_config():\n    return 1 / 0\n")
    assert "ZeroDivisionError" in refused(capsys, "train", f"--workdir={tmp_path / 'b'}", f"--config={file}")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "give --workdir=runs/NAME"),
        (["train", "--workdir=w", "--wrokdir=x"], "Did you mean: workdir"),
        (["train", "--workdir=w", "extra"], "'extra'"),
        (["train", "--workdir=w", "--config=/nowhere.py"], "/nowhere.py"),
        (["train", "--workdir=w", "--config.sde.nam=vp"], "did you mean 'name'"),
        (["train", "--workdir=w", "--config.sampler.pc.srn=1"], "did you mean 'snr'"),
        (["train", "--workdir=w", "--config.sde.vp"], "--config.KEY=VALUE"),
        (["train", "--workdir=w", "--config.training.num_steps=many"], "many"),
        (["train", "--workdir=w", "--config.training.num_steps=0"], "num_steps=0"),
        (["train", "--workdir=w", "--config.training.num_steps=1.5"], "1.5"),
        (["train", "--workdir=w", "--config.sde.name=vq"], "known: cosine"),
        (["train", "--workdir=w", "--config.data.name=digit"], "did you mean 'digits'"),
        (["train", "--workdir=w", "--config.data.root=x"], "data.root='x'"),
        (["train", "--workdir=w", "--config.network.name=unit"], "did you mean 'unet'"),
        (["train", "--workdir=w", "--config.network.unet.channels=6"], "channels=6"),
        (["train", "--workdir=w", "--config.denoiser.prediction=noise"], "prediction='noise'"),
        (["train", "--workdir=w", "--config.objective.denoising.weighting.name=snr"], "weighting='snr'"),
        (["train", "--workdir=w", "--config.sampler.name=dimm"], "did you mean 'ddim'"),
        (["train", "--workdir=w", "--device=tpu"], "device"),
        (["train", "--workdir=w", "--seed=-1"], "seed=-1"),
        (["train", "--workdir=w", "--batch_size=0"], "batch_size=0"),
        (["sample"], "workdir=None"),
        (["sample", "--workdir=/nowhere"], "no checkpoint"),
        (["verify", "--sampler=heum"], "did you mean 'heun'"),
        (["verify", "--sde=vpp"], "did you mean"),
        (["tour", "--num_samples=1"], "num_samples=1"),
        (["train", "--workdir=taken"], "taken: File exists"),
        (["tour", "--workdir=taken/run"], "taken/run: Not a directory; give another path"),
    ],
)
def test_bad_arguments(
    arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    assert part in refused(capsys, *arguments)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--sampler=dimm"], "did you mean 'ddim'"),
        (["--steps=0"], "steps=0"),
        (["--steps=ten"], "ten"),
        (["--sampler=probability_flow", "--steps=20"], "chooses its own steps"),
        (["--num_samples=0"], "num_samples=0"),
        (["--config.sampler.ddim.eta=2"], "eta=2"),
        (
            ["--sampler=pc", "--config.sampler.pc.predictor.name=ddim", "--config.sampler.pc.predictor.ddim.eta=2"],
            "eta=2",
        ),
        (["--sampler=pc", "--config.sampler.pc.predictor=scipy"], "has no single steps to correct"),
        (["--sampler=pc", "--config.sampler.pc.corrector=langevine"], "did you mean 'langevin'"),
        (["--config.network.unet.channels=16"], "does not fit the network of the config"),
    ],
)
def test_bad_sampling(trained: Path, flags: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert part in refused(capsys, "sample", f"--workdir={trained}", "--quiet", *flags)


def test_damaged_workdirs(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A truncated, a foreign and a mismatched checkpoint, a broken config: one line each, nothing changed."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(trained, tmp_path / name))

    truncated = copy("truncated")
    weights = truncated / "checkpoints" / "step_00000002" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for command in ("sample", "train"):
        more = ["--config.training.num_steps=4"] if command == "train" else []
        text = refused(capsys, command, f"--workdir={truncated}", "--quiet", *more)
        assert "ema.safetensors: damaged, it is not as it was written by its SHA-256; there is no checkpoint" in text
    assert weights.exists()

    foreign = copy("foreign")
    (foreign / "checkpoints" / "step_00000002" / "state.json").write_text('{"format": "other"}')
    assert "expected a checkpoint of this project" in refused(capsys, "sample", f"--workdir={foreign}", "--quiet")
    (foreign / "checkpoints" / "step_00000002" / "state.json").unlink()
    assert "state.json" in refused(capsys, "sample", f"--workdir={foreign}", "--quiet")

    broken = copy("broken")
    for damage in ("{", None):  # the copy in the checkpoint is used, and said so
        (broken / "config.json").unlink() if damage is None else (broken / "config.json").write_text(damage)
        assert sample(broken, "--steps=2") == 0
        assert "config.json" in (said := capsys.readouterr().err)
        assert "the copy in step_00000002 is used instead" in said
    content = json.loads((trained / "config.json").read_text())
    content["config"]["sde"]["nmae"] = "vp"
    (broken / "config.json").write_text(json.dumps(content))
    state = broken / "checkpoints" / "step_00000002" / "state.json"
    state.write_text(json.dumps({"format": "sde-diffusion checkpoint 1"}))  # there is no good copy in it
    assert "damaged, or changed by hand" in refused(capsys, "sample", f"--workdir={broken}", "--quiet")
    content.pop("sha256")
    (broken / "config.json").write_text(json.dumps(content))
    assert "unknown key 'sde.nmae'" in refused(capsys, "sample", f"--workdir={broken}", "--quiet")
    (broken / "config.json").unlink()
    assert "no config.json" in refused(capsys, "sample", f"--workdir={broken}", "--quiet")


def test_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN in the data, data of a shape that the network cannot take, a missing file."""
    data, run = tmp_path / "data.npz", f"--workdir={tmp_path / 'run'}"
    flags = ["--config.data.name=npz", f"--config.data.root={data}", *SMALL]
    assert "data.npz" in refused(capsys, "train", run, *flags)
    np.savez(data, train=np.full((8, 2), np.nan, np.float32), test=np.zeros((4, 2), np.float32))
    refused(capsys, "train", run, *flags)
    np.savez(data, train=np.zeros((8, 2), np.float32), test=np.zeros((4, 2), np.float32))
    assert "column 0 (always 0), 1 (always 0): constant" in refused(capsys, "train", run, *flags)
    generator = np.random.default_rng(0)
    np.savez(data, train=generator.normal(size=(8, 2)), test=np.zeros((4, 2)))
    assert "shape=(2,)" in refused(capsys, "train", run, *flags, "--config.network.name=unet")
    np.savez(data, train=np.zeros((8, 9, 9, 1), np.uint8), test=np.zeros((4, 9, 9, 1), np.uint8))
    assert "divisible by 2" in refused(capsys, "train", run, *flags)


def test_configurations_that_are_no_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A typo, an unknown key, a file that ends the program, JSON that is none: one line each."""
    start = "from sde_diffusion.config import default_config\ndef get_config():\n    config = default_config()\n"
    for text, words in (
        (f"{start}    config.trainig = 3\n    return config\n", "unknown key 'trainig'; did you mean 'training'?"),
        (
            f"{start}    config.training.num_step = 3\n    return config\n",
            "unknown key 'training.num_step'; did you mean",
        ),
        (f"{start}    config.training.num_steps.x = 3\n    return config\n", "cannot be read: AttributeError"),
        ("import sys\nsys.exit(0)\n", "it ends the program, sys.exit(0), where it should return a configuration"),
    ):
        (tmp_path / "my.py").write_text(text)
        run = f"--workdir={tmp_path / 'run'}"
        assert words in refused(capsys, "train", run, f"--config={tmp_path / 'my.py'}")
    for name, text, words in (
        ("a.json", "{", "expected a JSON file"),
        ("b.yaml", "[1, 2]", "keys and values of a configuration"),
        ("c.yaml", "trainig: {num_steps: 3}", "unknown key 'trainig'; did you mean 'training'?"),
        ("d.json", "[" * 100_000, "expected a JSON file"),
        ("e.yaml", "[" * 100_000, "cannot be read"),
    ):
        (tmp_path / name).write_text(text)
        assert words in refused(capsys, "train", f"--workdir={tmp_path / 'run'}", f"--config={tmp_path / name}")


def test_a_configuration_may_be_json_or_yaml_or_that_of_a_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text(
        "training: {num_steps: 2, batch_size: 4}\nnetwork: {name: unet, unet: {channels: 8}}\nsde: subvp\n"
        "objective: {denoising: {times: {stratified: {t_min: 1e-4}}}}\n"
    )
    assert main(["train", "--workdir=~/one", "--config=~/my.yaml", "--quiet", "--device=cpu"]) == 0
    stored = read_record(tmp_path / "one" / "config.json")["config"]
    assert (stored["sde"]["name"], stored["network"]["unet"]["channels"]) == ("subvp", 8)
    again = [f"--workdir={tmp_path / 'two'}", f"--config={trained / 'config.json'}", "--config.training.num_steps=1"]
    assert main(["train", *again, "--quiet", "--device=cpu"]) == 0
    one, two = (read_record(w / "config.json")["config"] for w in (trained, tmp_path / "two"))
    assert one["network"] == two["network"]


def test_flags_given_twice_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of numbers one would be lost, and tuples would be joined."""
    twice = ["--config.sampler.pc.snr=0.1", "--config.sampler.pc.snr=0.2"]
    assert "it is given as 0.1 too" in refused(capsys, "sample", f"--workdir={trained}", "--sampler=pc", *twice)
    tuples = ["--config.network.unet.channel_mults=1", "--config.network.unet.channel_mults=2"]
    assert "it is given as 1 too" in refused(capsys, "train", "--workdir=nowhere", *tuples)


def test_options_that_would_not_be_read_are_refused(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = ["sample", f"--workdir={trained}", "--num_samples=1", "--quiet"]
    assert "an option of ddim, with which is drawn" in refused(capsys, *about, "--config.sampler.pc.snr=0.2")
    both = ["--sampler=heun", "--steps=3", "--config.sampler.heun.num_steps=4"]
    assert "the number of steps once" in refused(capsys, *about, *both)
    sweep = ["benchmark", f"--workdir={trained}", "--samplers=ddim,heun", "--steps=2", "--quiet"]
    assert "an option of ddim, heun, with which" in refused(capsys, *sweep, "--config.sampler.pc.snr=0.2")
    assert main([*about, "--config.sampler.name=pc", "--config.sampler.pc.snr=0.2", "--steps=2", "--device=cpu"]) == 0


def test_where_data_are_is_stored_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    np.savez("table.npz", x=generator.normal(size=(20, 2)))
    small = ["--config.data.name=npz", "--config.data.root=table.npz", "--config.training.num_steps=1", "--quiet"]
    assert main(["train", "--workdir=run", *small]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    few = ["--num_samples=2", "--bound_draws=2", "--bound_steps=2", "--tolerance=0.5", "--quiet"]
    assert main(["likelihood", f"--workdir={tmp_path / 'run'}", *few]) == 0


def test_a_terminal_without_greek_letters() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sde_diffusion", "samplers"]
    found = subprocess.run(command, capture_output=True, check=True, env=environment)
    assert b"heun" in found.stdout


def test_stopping_by_hand_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(values: object, config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sde_diffusion.commands.samplers.run", interrupt)
    assert main(["samplers"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_module_is_the_console_script() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    text = subprocess.run(
        [sys.executable, "-m", "sde_diffusion", "--help"], capture_output=True, text=True, check=True, env=environment
    )
    assert "usage: sde-diffusion COMMAND" in text.stdout


def test_import_is_light() -> None:
    """Importing the package loads none of the heavy libraries that only some commands need."""
    heavy = ["torch_fidelity", "torchsde", "matplotlib", "sklearn", "tensorboard", "torchvision", "scipy", "diffusers"]
    code = f"import sde_diffusion, samplers, sys; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_json_has_no_nan(tmp_path: Path) -> None:
    from sde_diffusion.files import write_json
    from sde_diffusion.reading import read_json

    write_json(tmp_path / "a.json", {"a": [1.0, float("nan")], "b": {"c": (float("inf"), "∞")}})
    assert read_json(tmp_path / "a.json") == {"a": [1.0, None], "b": {"c": [None, "∞"]}}
