"""Parts of one's own, registered outside of the project, used by every command, and found again by the run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sde_diffusion as sd
from sde_diffusion import plugins, registry
from sde_diffusion.codecs import codec_for, describe_codec, stored_codec
from sde_diffusion.commands.main import main
from sde_diffusion.data import DATASETS
from sde_diffusion.evaluation.sweep import read_rows
from sde_diffusion.objectives import OBJECTIVES, TIMES
from sde_diffusion.records import read_record
from tests.test_commands import refused, trained
from tests.test_training import SMALL, draw_of

__all__ = ["trained"]

OUTSIDE = Path(__file__).parent / "outside"
"""One file each: a sampler with memory, an SDE, networks, guidance, an objective, a metric, a data set, a codec."""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave no plug-in to the tests that come after, as if each were a process of its own."""
    monkeypatch.setattr(plugins, "_loaded", {})
    tables = [(r, dict(r._entries), dict(r._sources), dict(r._others)) for r in registry._REGISTRIES]
    yield
    for r, entries, sources, others in tables:
        r._entries, r._sources, r._others = entries, sources, others


def forget() -> None:
    plugins._loaded.clear()
    for r in registry._REGISTRIES:
        for name in list(r._others):
            for table in (r._entries, r._sources, r._others):
                table.pop(name, None)


CHOSEN = [f"--config.{part}.name=own_{part}" for part in ("sde", "network", "sampler", "objective")]


def test_a_package_outside_of_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained, sampled, swept, scored and reported from the command line, from another folder too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    own = Path(shutil.copytree(OUTSIDE, tmp_path / "own"))
    for file in own.glob("*.py"):
        assert len(file.read_text().splitlines()) <= 60
    names = ",".join(path.name for path in sorted(own.glob("own_*.py")))
    monkeypatch.chdir(own)
    steps = ["--config.training.num_steps=2", "--config.network.own_network.width=24"]
    steps += [f"--config.objective.own_objective.{option}" for option in ("c=0.5", "times=uniform")]
    flags = [flag for flag in SMALL if "unet" not in flag]
    assert main(["train", "--workdir=run", f"--plugins={names}", *flags, *steps, *CHOSEN]) == 0
    stored = read_record(own / "run" / "config.json")["config"]
    assert stored["network"] == {"name": "own_network", "own_network": {"width": 24}}
    objective = {"c": 0.5, "times": {"name": "uniform", "uniform": TIMES.config("uniform")}}
    assert stored["objective"] == {"name": "own_objective", "own_objective": objective}
    assert {Path(name).name for name in stored["plugins"]} == set(names.split(","))
    forget()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = f"--workdir={own / 'run'}"
    assert main(["sample", run, "--steps=3", "--num_samples=2", "--quiet"]) == 0
    forget()
    pulled = ["--config.guidance.name=own_guidance", "--config.guidance.own_guidance.strength=1.0"]
    assert main(["sample", run, "--steps=4", "--num_samples=2", "--quiet", *pulled]) == 0
    np.testing.assert_allclose(np.load(draw_of(own / "run", "own_sampler_4_n2_seed0"))["z"], 0.5, atol=1e-6)
    forget()
    assert main(["train", run, *flags, "--config.training.num_steps=3"]) == 0
    forget()
    few = ["--num_images=2", "--bound_draws=2", "--bound_steps=2", "--tolerance=0.5", "--quiet"]
    assert main(["likelihood", run, *few]) == 0
    forget()
    sweep = ["--samplers=own_sampler,ddim", "--steps=3", "--num_samples=70", "--quiet"]
    assert main(["benchmark", run, *sweep]) == 0
    rows = read_rows(own / "run" / "benchmark.jsonl")
    assert [row["sampler"] for row in rows] == ["own_sampler", "ddim"]
    assert all(row["metrics"]["mean distance"] > 0.0 for row in rows)
    forget()
    assert main(["report", run, "--quiet"]) == 0
    page = (own / "run" / "report.html").read_text()
    assert "own_sampler" in page
    assert "mean distance" in page
    forget()
    verify = ["verify", f"--plugins={own / 'own_sampler.py'},{own / 'own_sde.py'}", "--sampler=own_sampler", "--quiet"]
    for sde in ("vp", "own_sde"):
        assert main([*verify, f"--sde={sde}"]) == 0


def test_an_objective_is_found_again_and_resumed_exactly(tmp_path: Path) -> None:
    """Trained in two parts, the second without a word of the plug-in, a run has the weights of an uninterrupted one."""
    own = f"--plugins={OUTSIDE / 'own_objective.py'}"
    flags = [*SMALL, own, "--config.objective.name=own_objective", "--config.objective.own_objective.c=0.5"]
    whole, parts, other = (tmp_path / name for name in ("whole", "parts", "other"))
    assert main(["train", f"--workdir={whole}", *flags, "--config.training.num_steps=4"]) == 0
    assert main(["train", f"--workdir={parts}", *flags, "--config.training.num_steps=2"]) == 0
    forget()
    more = ["--quiet", "--device=cpu", "--config.training.num_steps=4"]
    assert main(["train", f"--workdir={parts}", *more]) == 0
    assert main(["train", f"--workdir={other}", *SMALL, "--config.training.num_steps=4"]) == 0
    weights = [load_file(w / "checkpoints" / "step_00000004" / "network.safetensors") for w in (whole, parts, other)]
    assert all(torch.equal(weights[1][name], tensor) for name, tensor in weights[0].items())
    assert not all(torch.equal(weights[2][name], tensor) for name, tensor in weights[0].items())


def test_an_objective_of_ones_own_is_the_squared_error_where_it_is_small() -> None:
    """√(e² + c²) − c = e²/(2c) (1 − e²/(4c²) …), and with equal streams the times and noises are the same ones.

    With c = 1,000 and e² below 40 the series is off by 1e-5; numbers near c are rounded to 1e-13, 2c/2 times that here.
    """
    plugins.load([str(OUTSIDE / "own_objective.py")])
    own = OBJECTIVES.build("own_objective", times={"name": "uniform", "t_min": 1e-3}, c=1e3)
    squared = sd.DenoisingScoreMatching({"name": "uniform", "t_min": 1e-3}, "simple")
    law = sd.Gaussian([0.0, 1.0], 0.3 * torch.eye(2))
    x, denoiser = law.sample(64), law.denoiser(sd.VPSDE())
    found, expected = (objective(denoiser, x, sd.NoiseStream(0, range(64))) for objective in (own, squared))
    torch.testing.assert_close(2e3 * found / 2, expected, rtol=1e-5, atol=1e-9)  # the mean over 2 components


OF_DATA = ",".join(str(OUTSIDE / f"own_{part}.py") for part in ("dataset", "codec", "conditional"))
OWN_DATA = [f"--config.{part}" for part in ("data=own_dataset", "codec=own_codec", "network=own_conditional")]


def test_data_of_ones_own_with_a_codec_and_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained, sampled and scored from the command line, from another folder, given classes and a number."""
    flags = [flag for flag in SMALL if "unet" not in flag]
    run = f"--workdir={tmp_path / 'run'}"
    few = ["--config.training.num_steps=4", f"--plugins={OF_DATA}"]
    assert main(["train", run, *few, *flags, *OWN_DATA]) == 0
    data = DATASETS.build("own_dataset")
    stored = read_record(tmp_path / "run" / "config.json")["data"]
    log_x = np.log(data.train.numpy().astype(np.float64))
    mean, std = log_x.mean(axis=0), log_x.std(axis=0)
    np.testing.assert_allclose(stored["codec"]["mean"], mean, rtol=1e-10)  # float64, in another order of sums
    np.testing.assert_allclose(stored["codec"]["std"], std, rtol=1e-10)
    assert stored["conditions"] == {"classes": [], "scale": []}
    forget()
    monkeypatch.chdir(tmp_path)

    scale = np.linspace(0.5, 1.0, 6)
    np.savez("scale.npz", scale=scale)
    sample = ["sample", run, "--quiet", "--device=cpu", "--steps=4"]
    assert main([*sample, "--num_samples=6", "--classes=large,small", "--conditions=scale.npz"]) == 0
    (file,) = (tmp_path / "run" / "samples").glob("*.npz")
    drawn = np.load(file)
    assert (drawn["x"] > 0.0).all()
    np.testing.assert_allclose(drawn["x"], np.exp(mean + std * drawn["z"]), rtol=1e-6)  # float32
    assert drawn["classes"].tolist() == [1, 0, 1, 0, 1, 0]
    np.testing.assert_array_equal(drawn["scale"], scale.astype(np.float32))
    forget()

    x, known = data.test[:8], {name: values[1][:8] for name, values in data.conditions.items()}
    np.savez("rows.npz", x=x, **known)
    exact = ["--divergence=exact", "--tolerance=1e-3", "--bound_draws=2", "--bound_steps=2", "--quiet", "--device=cpu"]
    assert main(["likelihood", run, "--data=rows.npz", *exact]) == 0
    found = np.load(tmp_path / "run" / "likelihood_rows.npz")["log_p_ode_nats"][0]
    z = (np.log(x.numpy().astype(np.float64)) - mean) / std
    solver = {"divergence": "exact", "rtol": 1e-3, "atol": 1e-3, "check": 0}
    network = sd.open_run(tmp_path / "run", device="cpu").float32
    of_z = sd.log_likelihood(network, torch.from_numpy(z).float(), **solver, **known).log_prob.numpy()
    weight = -np.log(x.numpy().astype(np.float64)).sum(axis=1) - np.log(std).sum()
    np.testing.assert_allclose(found, of_z + weight, rtol=1e-5)  # the same steps, in float32

    assert "scale: missing, and the network of" in refused(capsys, *sample, "--classes=small")
    np.savez("wide.npz", scale=scale[:, None])
    wide = refused(capsys, *sample, "--num_samples=6", "--conditions=wide.npz")
    assert "scale shape=(6, 1): expected (6,), as in training" in wide
    np.savez("other.npz", x=x, classes=known["classes"])
    assert "give a file with an array 'scale'" in refused(capsys, "likelihood", run, "--data=other.npz", *exact)
    x[2, 1] = -1.0
    np.savez("negative.npz", x=x, **known)
    assert "column height: its least value is -1" in refused(capsys, "likelihood", run, "--data=negative.npz", *exact)
    text = refused(capsys, "train", f"--workdir={tmp_path / 'b'}", *few, *flags, "--config.data=two_moons", OWN_DATA[1])
    assert "column 0: its least value is" in text
    assert not (tmp_path / "b" / "config.json").exists()


def test_the_log_weight_of_a_codec_of_ones_own_is_the_change_of_variables() -> None:
    """Under a standard normal z the density of x is the log-normal one, in torch's own formula."""
    plugins.load(OF_DATA.split(","))
    data = DATASETS.build("own_dataset")
    codec: Any = codec_for(data, "own_codec")
    z, weight = codec.encode(data.test)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z.double()).sum(dim=1)
    law = torch.distributions.LogNormal(*(torch.tensor(v, dtype=torch.float64) for v in (codec.mean, codec.std)))
    expected = law.log_prob(data.test.double()).sum(dim=1)
    torch.testing.assert_close(normal + weight, expected, rtol=1e-5, atol=1e-5)  # z is rounded to float32
    assert stored_codec(describe_codec(codec)) == codec


def test_rows_without_a_new_metric_are_measured_anew(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    sweep = ["benchmark", f"--workdir={run}", "--samplers=ddim,heun", "--steps=2", "--num_samples=70", "--quiet"]
    assert main([*sweep, "--device=cpu"]) == 0
    before = read_rows(run / "benchmark.jsonl")
    assert main([*sweep, "--device=cpu", f"--plugins={OUTSIDE / 'own_metric.py'}"]) == 0
    after = read_rows(run / "benchmark.jsonl")
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        assert new["metrics"].items() >= old["metrics"].items()
        assert "mean distance" in new["metrics"]


def test_a_shipped_run_with_a_sampler_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [f"--plugins={OUTSIDE / 'own_sampler.py'}", "--sampler=own_sampler", "--steps=2", "--num_samples=1"]
    assert main(["sample", "--pretrained=fashion_mnist", *flags, "--quiet"]) == 0
    assert draw_of(tmp_path / "runs" / "fashion_mnist", "own_sampler_2_n1_seed0").exists()
    capsys.readouterr()
    assert main(["samplers", f"--plugins={OUTSIDE / 'own_sampler.py'}"]) == 0
    assert "own_sampler" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["imports", "names"])
def test_a_configuration_brings_its_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    shutil.copy(OUTSIDE / "own_sampler.py", tmp_path / f"brought_{how}.py")
    first, then = (f"import brought_{how}", "") if how == "imports" else ("", f"config.plugins = ('brought_{how}.py',)")
    (tmp_path / "my.py").write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{first}\nfrom sde_diffusion.config import default_config\n"
        "def get_config():\n    config = default_config()\n    config.sampler.name = 'own_sampler'\n"
        f"    {then}\n    return config\n"
    )
    run = f"--workdir={tmp_path / 'run'}"
    flags = [*SMALL, "--config.training.num_steps=2", "--config.sampler.own_sampler.num_steps=7"]
    assert main(["train", run, f"--config={tmp_path / 'my.py'}", *flags]) == 0
    forget()
    assert main(["sample", run, "--num_samples=1", "--quiet"]) == 0
    assert draw_of(tmp_path / "run", "own_sampler_7_n1_seed0").exists()


def test_only_what_is_chosen_is_stored(tmp_path: Path) -> None:
    flags = [*SMALL, "--config.training.num_steps=2", "--config.sampler.pc.snr=0.2"]
    assert main(["train", f"--workdir={tmp_path}", *flags]) == 0
    stored = json.loads((tmp_path / "config.json").read_text())["config"]
    assert stored["sampler"].keys() == {"name", "ddim", "pc"}
    assert stored["sampler"]["pc"] == {"snr": 0.2}
    assert stored["sde"].keys() == {"name", "vp"}
    assert stored["data"].keys() == {"name", "root", "digits"}
    assert main(["sample", f"--workdir={tmp_path}", "--sampler=pc", "--steps=2", "--num_samples=1", "--quiet"]) == 0


def test_bad_plugins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken, twice, syntax = (tmp_path / f"{name}.py" for name in ("broken", "twice", "syntax"))
    broken.write_text("import math\n\nmath.sqrt(-1)\n")
    twice.write_text("import samplers\n\n@samplers.register('ddim')\nclass Mine:\n    pass\n")
    syntax.write_text("def f(:\n")
    for value, words in (
        ("none_of_that_name", "plugins='none_of_that_name': expected an installed module, or a file ending in .py"),
        (str(tmp_path / "gone.py"), "gone.py': expected an existing file"),
        (str(broken), f"plugins='{broken}', line 3: ValueError"),
        (str(syntax), f"plugins='{syntax}', line 1: SyntaxError"),
        (str(twice), f"plugins='{twice}', line 3: sampler 'ddim' is registered already, by "),
    ):
        for command in ("samplers", "train", "sample", "report", "verify"):
            assert words in refused(capsys, command, f"--plugins={value}")
    text = refused(capsys, "train", f"--workdir={tmp_path / 'run'}", "--config.plugins=('a.py',)")
    assert "give --plugins=FILE,module" in text


def test_two_that_register_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = Path(shutil.copy(OUTSIDE / "own_sampler.py", tmp_path / "first.py"))
    second = Path(shutil.copy(OUTSIDE / "own_sampler.py", tmp_path / "second.py"))
    text = refused(capsys, "samplers", f"--plugins={first},{second}")
    assert f"plugins='{second}'" in text
    assert f"sampler 'own_sampler' is registered already, by {first}" in text


def test_a_run_whose_plugin_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = Path(shutil.copy(OUTSIDE / "own_sampler.py", tmp_path / "own_sampler.py"))
    run = f"--workdir={tmp_path / 'run'}"
    flags = [*SMALL, "--config.training.num_steps=2", "--config.sampler.name=own_sampler"]
    assert main(["train", run, f"--plugins={own}", *flags]) == 0
    (tmp_path / "moved").mkdir()
    moved = own.rename(tmp_path / "moved" / own.name)
    forget()
    for command in ("sample", "train", "report", "benchmark", "likelihood"):
        text = refused(capsys, command, run)
        assert f"plugins='{own}': expected a file that the run in {tmp_path / 'run'} was made with" in text
    assert main(["train", run, f"--plugins={moved}", *SMALL, "--config.training.num_steps=3"]) == 0
    assert read_record(tmp_path / "run" / "config.json")["config"]["plugins"] == [str(moved)]


def test_code_in_the_folder_of_a_run_is_not_run_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, flags = tmp_path / "run", [*SMALL, "--config.training.num_steps=2"]
    run.mkdir()
    own = Path(shutil.copy(OUTSIDE / "own_sampler.py", run / "own_sampler.py"))
    assert main(["train", f"--workdir={run}", f"--plugins={own}", *flags]) == 0
    forget()
    assert "code in the folder of a run is not run" in refused(capsys, "sample", f"--workdir={run}")
    assert main(["sample", f"--workdir={run}", f"--plugins={own}", "--steps=2", "--num_samples=1", "--quiet"]) == 0


RECIPES = {
    "a sampler": ["verify", "--sampler=my_sampler", "--sde=vp"],
    "an SDE": ["verify", "--sde=my_sde", "--sampler=heun"],
    "a network": ["train", *SMALL, "--config.network.name=my_network", "--config.training.num_steps=2"],
    "an objective": [
        "train",
        *SMALL,
        "--config.objective=my_objective",
        "--config.objective.my_objective.times=uniform",
        "--config.training.num_steps=2",
    ],
    "a data set": [
        "train",
        *SMALL,
        "--config.data=my_dataset",
        "--config.network.unet.num_classes=2",
        "--config.training.num_steps=2",
    ],
    "a codec": [
        "train",
        *SMALL,
        "--config.data=two_moons",
        "--config.codec=my_codec",
        "--config.training.num_steps=2",
    ],
    "guidance": ["sample", "--config.guidance.name=my_guidance", "--steps=2", "--num_samples=2"],
    "a metric": ["benchmark", "--samplers=ddim", "--steps=2", "--num_samples=70"],
}
"""Sections of CONTRIBUTING that show a whole file, and what must work with it."""


@pytest.mark.parametrize("what", RECIPES)
def test_recipes(what: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each, as a file outside of the tree, does in a command what it says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    section = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text().partition(f"## Add {what}\n")[2]
    block = section.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "mine.py").write_text(block)
    name, *flags = RECIPES[what]
    run = tmp_path / "run"
    if name in ("sample", "benchmark"):
        shutil.copytree(trained, run)
    workdir = [] if name == "verify" else [f"--workdir={run}", "--device=cpu"]
    flags = [flag for flag in flags if what != "a network" or "unet" not in flag]  # which is not the one that is chosen
    assert main([name, *workdir, f"--plugins={tmp_path / 'mine.py'}", *flags, "--quiet"]) == 0
    if what == "a metric":
        assert all("my metric" in row["metrics"] for row in read_rows(run / "benchmark.jsonl")[-1:])
    if what == "a data set":
        assert read_record(run / "config.json")["data"]["shape"] == [1, 32]
    if what == "a codec":
        codec = sd.open_run(run, device="cpu").codec
        x, h = DATASETS.build("two_moons").test[:50], 1e-2
        z, weight = codec.encode(x)
        torch.testing.assert_close(codec.decode(z), x)
        slope = (codec.encode(x + h)[0] - codec.encode(x - h)[0]).double() / (2.0 * h)  # to h², and 1e-7/h of rounding
        torch.testing.assert_close(weight, slope.log().sum(dim=1), atol=1e-3, rtol=0.0)
