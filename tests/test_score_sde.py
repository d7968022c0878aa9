"""Checkpoints of score_sde_pytorch: what the authors' networks answer, from ours; conversion; bad input.

tests/data/score_sde/NAME.npz has the averaged weights of small checkpoints that their code wrote, with inputs and their
networks' outputs, and NAME.json the configuration. The matrices of some are kept in 8 bits, which moves an output by 2
to 4 % and a wrong mapping by 100 %. With SCORE_SDE_FIXTURES=FOLDER the same tests run on whole files,
NAME.{pth,npz,json}, to 1e-5; ``python tests/test_score_sde.py FOLDER`` makes the small ones of those.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

import samplers
import sde_diffusion as sd
from sde_diffusion.commands.config_files import config_file
from sde_diffusion.commands.main import main
from sde_diffusion.config import build_network, paper_config
from sde_diffusion.training.loaders.score_sde import _origins
from tests.test_commands import refused
from tests.test_configs import CONFIGS, PARAMETERS
from tests.test_training import draw_of

DATA = Path(__file__).parent / "data" / "score_sde"
SHIPPED = {"ncsnpp_ve": 1e-5, "ddpm": 0.05, "ddpmpp_subvp": 0.05}
"""Names and the relative error of outputs: rounding, or weights in 8 bits."""
WHOLE = sorted(Path(os.environ["SCORE_SDE_FIXTURES"]).glob("*.pth")) if "SCORE_SDE_FIXTURES" in os.environ else []
STEP = 1234


def shrink(source: Path) -> None:
    """Make the small files of a whole fixture: averaged weights, of all but one in 8 bits."""
    content = torch.load(source, map_location="cpu", weights_only=False)
    answers = np.load(source.with_suffix(".npz"))
    keys = [key for key in content["model"] if key.startswith("module.all_modules") and key != "module.all_modules.0.W"]
    model = {**content["model"], **dict(zip(keys, content["ema"]["shadow_params"], strict=True))}
    arrays = {key: answers[key] for key in ("x", "labels", "output_ema")}
    for key, value in model.items():
        array = value.numpy()
        if SHIPPED[source.stem] > 1e-3 and array.ndim > 1:
            unit = np.abs(array).max() / 127.0
            arrays[f"unit/{key}"] = np.float32(unit)
            array = (array / unit).round().astype(np.int8)
        arrays[f"model/{key}"] = array[[0, -1]] if key.endswith("sigmas") else array
    np.savez_compressed(DATA / f"{source.stem}.npz", **arrays)
    shutil.copy(source.with_suffix(".json"), DATA)


def write(folder: Path, name: str, change: Callable[[dict[str, Any]], object] = lambda content: None) -> Path:
    """Write a shipped checkpoint in the form of score_sde_pytorch, ``change`` made to it, and its description.

    The weights in training are twice the averaged ones.
    """
    arrays = np.load(DATA / f"{name}.npz")
    model = {}
    for key in (k.removeprefix("model/") for k in arrays.files if k.startswith("model/")):
        unit = arrays[f"unit/{key}"] if f"unit/{key}" in arrays.files else None
        array = arrays[f"model/{key}"]
        model[key] = torch.from_numpy(array if unit is None else array.astype(np.float32) * unit)
    trained = [key for key in model if not key.endswith("sigmas") and key != "module.all_modules.0.W"]
    content = {
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(2e-4), "params": list(range(len(trained)))}]},
        "model": {key: 2.0 * value if key in trained else value for key, value in model.items()},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": [model[key] for key in trained]},
        "step": STEP,
    }
    change(content)
    path = folder / f"{name}.pth"
    torch.save(content, path)
    shutil.copy(DATA / f"{name}.json", folder)
    return path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("score_sde")
    return {name: write(folder, name) for name in SHIPPED}


def check(path: Path, answers: Path, output: str, averaged: bool, tolerance: float) -> None:
    """Compare scores in our data space with those that the authors' formulas make of their network's output."""
    told, numbers = json.loads(path.with_suffix(".json").read_text()), np.load(answers)
    x, labels, raw = (torch.from_numpy(numbers[key]) for key in ("x", "labels", output))
    denoiser = sd.load_pretrained(path, averaged=averaged)
    model, labels = told["model"], labels.double()
    if told["training"]["sde"] == "vesde":
        # Their score is of y = (x + 1)/2 in [0, 1], with noise σ: ∇_x log p = ½ ∇_y log p at x = 2 y − 1, noise 2 σ.
        t = (labels / model["sigma_min"]).log() / np.log(model["sigma_max"] / model["sigma_min"])
        x, expected = 2.0 * x - 1.0, 0.5 * raw
        torch.testing.assert_close(denoiser.sde.sigma(t), 2.0 * labels, rtol=1e-6, atol=0.0)
    else:
        if told["training"]["continuous"]:
            t = labels / 999.0
            decay = torch.exp(-0.5 * t**2 * (model["beta_max"] - model["beta_min"]) - t * model["beta_min"])
            sigma = 1.0 - decay if told["training"]["sde"] == "subvpsde" else (1.0 - decay).sqrt()
        else:
            t = (labels + 1.0) / model["num_scales"]
            ends = (model[key] / model["num_scales"] for key in ("beta_min", "beta_max"))
            betas = torch.linspace(*ends, model["num_scales"], dtype=torch.float64)
            sigma = (1.0 - (1.0 - betas).cumprod(0)[labels.long()]).sqrt()
        expected = -raw / sigma.float()[:, None, None, None]
    with torch.no_grad():
        score = denoiser(x, t).score
    for ours, theirs in zip(score, expected, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("name", SHIPPED)
def test_scores_are_the_authors(checkpoints: dict[str, Path], name: str) -> None:
    check(checkpoints[name], DATA / f"{name}.npz", "output_ema", True, SHIPPED[name])


@pytest.mark.skipif(not WHOLE, reason="set SCORE_SDE_FIXTURES to a folder of whole checkpoints")
@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)
def test_scores_are_the_authors_on_whole_files(path: Path) -> None:
    check(path, path.with_suffix(".npz"), "output_ema", True, 1e-5)
    check(path, path.with_suffix(".npz"), "output_model", False, 1e-5)


def test_weights_in_training_are_kept_apart(checkpoints: dict[str, Path]) -> None:
    averaged, raw = (sd.load_pretrained(checkpoints["ddpm"], averaged=a).net.state_dict() for a in (True, False))
    assert all(torch.equal(2.0 * averaged[key], raw[key]) for key in averaged)


def test_discrete_noise_levels(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """One network read as theirs of VP and of discrete VE, whose score is its output over σ at label (N − 1)(1 − t)."""
    path = shutil.copy(checkpoints["ddpm"], tmp_path / "smld.pth")
    told = json.loads(checkpoints["ddpm"].with_suffix(".json").read_text())
    told["training"]["sde"], told["model"]["scale_by_sigma"], told["data"]["centered"] = "vesde", True, False
    path.with_suffix(".json").write_text(json.dumps(told))
    denoiser, net = sd.load_pretrained(path), sd.load_pretrained(checkpoints["ddpm"]).net
    sigmas = torch.linspace(np.log(50.0), np.log(0.01), 1000, dtype=torch.float64).exp()
    y, label = torch.rand(3, 3, 8, 8), torch.tensor([0, 400, 998])
    sigma, t = sigmas[label].float()[:, None, None, None], 1.0 - label.double() / 999
    theirs = net(2.0 * y - 1.0, label.float()) / sigma
    with torch.no_grad():
        error = 2.0 * denoiser(2.0 * y - 1.0, t).score - theirs
    assert (sigma * error).norm() <= 1e-5 * (sigma * theirs).norm()
    for steps in (3, 1500):  # more than there are levels
        assert len(samplers.build("euler_maruyama", num_steps=steps).times(denoiser)) <= 1000


def described(change: Callable[[ConfigDict], object] = lambda config: None) -> ConfigDict:
    """Return our configuration of the shipped VE checkpoint, made of a paper's as a person would."""
    config = config_file(f"{CONFIGS}/cifar10.py:ve-ncsnpp")
    config.network.ncsnpp.update(channels=16, channel_mults=(1, 2), num_blocks=1, attention=(4,))
    config.data.name = "image_folder"
    config.data.image_folder.image_size = 8
    change(config)
    return config


def test_a_configuration_takes_the_place_of_the_description(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    bare = shutil.copy(checkpoints["ncsnpp_ve"], tmp_path / "checkpoint_8.pth")
    a, b = sd.load_pretrained(bare, config=described()), sd.load_pretrained(checkpoints["ncsnpp_ve"])
    assert a.sde == b.sde
    assert a.noise_label == b.noise_label
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(a(x, t).score, b(x, t).score)


@pytest.mark.parametrize("name", [name for name in PARAMETERS if "deep" not in name])
def test_paper_networks_follow_the_same_scheme(name: str) -> None:
    """Their module numbers run on without a gap, from the embedding to the last convolution."""
    config = config_file(f"{CONFIGS}/cifar10.py:{name}")
    with torch.device("meta"):
        net = build_network(config)
    origins = _origins(net)  # type: ignore[arg-type]
    assert origins.keys() == net.state_dict().keys()
    numbers = [int(key.split(".")[1]) for keys in origins.values() for key in keys]
    assert set(numbers) == set(range(max(numbers) + 1))
    assert origins["head.weight"] == [f"all_modules.{max(numbers)}.weight"]


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("name", SHIPPED)
def test_the_result_is_an_ordinary_workdir(checkpoints: dict[str, Path], tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    assert main(["convert", f"--source={checkpoints[name]}", f"--workdir={run}", "--quiet"]) == 0
    saved = json.loads((run / "config.json").read_text())
    assert saved["data"] == {"shape": [3, 8, 8], "levels": 256}
    assert saved["provenance"]["source"]["format"] == "score_sde_pytorch"
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step_{STEP:08d}"]
    everywhere = [f"--workdir={run}", "--quiet", "--device=cpu"]
    for sampler in ("ddim", "pc"):
        assert main(["sample", *everywhere, f"--sampler={sampler}", "--steps=3", "--num_samples=2"]) == 0
    drawn = samplers.build("ddim", num_steps=3).draw(sd.load_pretrained(checkpoints[name]), (2, 3, 8, 8), seed=0).x
    np.testing.assert_allclose(np.load(draw_of(run, "ddim_3_n2_seed0"))["z"], drawn, rtol=1e-4, atol=1e-4)
    again = sd.load_pretrained(run).net.state_dict()
    original = sd.load_pretrained(checkpoints[name]).net.state_dict()
    assert all(torch.equal(again[key], original[key]) for key in original)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_a_converted_checkpoint_is_scored_and_trained_on(
    checkpoints: dict[str, Path], tmp_path: Path, name: str
) -> None:
    run, data = tmp_path / "run", f"--config.data.root={pictures(tmp_path / 'pictures')}"
    assert main(["convert", f"--source={checkpoints[name]}", f"--workdir={run}", "--quiet"]) == 0
    everywhere = [f"--workdir={run}", data, "--quiet", "--device=cpu"]
    few = ["--num_images=1", "--tolerance=1e-1", "--bound_draws=2", "--bound_steps=2"]
    assert main(["likelihood", *everywhere, *few]) == 0
    bits = json.loads((run / "likelihood.json").read_text())["bits_per_dim"]
    assert all(np.isfinite(pair["mean"] if isinstance(pair, dict) else pair[0]) for pair in bits.values())
    more = [f"--config.training.num_steps={STEP + 1}", "--config.training.batch_size=2"]
    assert main(["train", *everywhere, *more]) == 0
    assert (run / "checkpoints" / f"step_{STEP + 1:08d}").is_dir()


class Runs:
    """Runs code when it is unpickled by pickle itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo this must not run",)


def drop(content: dict[str, Any], key: str) -> None:
    del content["model"][f"module.{key}"]
    content["ema"]["shadow_params"].pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(extra=Runs()), "system, which could run code"),
        (lambda c: c.pop("ema"), "expected model, ema with shadow_params, and step"),
        (lambda c: c.update(model=3), "expected model, ema with shadow_params"),
        (lambda c: c["ema"]["shadow_params"].pop(), "ema.shadow_params="),
        (lambda c: drop(c, "all_modules.19.bias"), "missing all_modules.19.bias"),
        (lambda c: c["model"].update({"module.sigmas": torch.tensor([90.0, 0.01])}), "sde.ve.sigma_max=100.0"),
    ],
)
def test_broken_files(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    path = write(tmp_path, "ncsnpp_ve", change)
    with pytest.raises(sd.InputError) as caught:
        sd.load_pretrained(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "nf", None, "missing model.nf"),
        ("model", "nf", 32, "all_modules.0.W has shape (16,), not (32,)"),
        ("model", "nf", "many", "channels='many'"),
        ("model", "num_res_blocks", 2, "missing all_modules."),
        ("model", "name", "ncsnv2", "model.name='ncsnv2'"),
        ("model", "resblock_type", "ddpm", "model.resblock_type='ddpm': expected 'biggan'"),
        ("model", "fir", False, "model.progressive_input='residual': expected 'none'"),
        ("model", "fir_kernel", [1, 2, 1], "model.fir_kernel=[1, 2, 1]"),
        ("model", "progressive", "residual", "model.progressive='residual'"),
        ("model", "progressive", "output_skip", "does not fit the network as configured"),
        ("model", "progressive_input", "input_skip", "does not fit the network as configured"),
        ("model", "skip_rescale", False, "model.skip_rescale=False"),
        ("model", "nonlinearity", "elu", "model.nonlinearity='elu'"),
        ("model", "embedding_type", "positional", "model.embedding_type='positional'"),
        ("model", "scale_by_sigma", False, "model.scale_by_sigma=False"),
        ("model", "sigma_max", "big", "model.sigma_max='big'"),
        ("training", "sde", "edm", "training.sde='edm'"),
        ("data", "num_channels", 1, "all_modules.3.weight has shape (16, 3, 3, 3), not (16, 1, 3, 3)"),
        ("data", "image_size", 7, "shape=(3, 7, 7): expected sides divisible by 2"),
        ("data", "image_size", 16, "missing all_modules."),
    ],
)
def test_descriptions_of_what_is_not_here(tmp_path: Path, section: str, key: str, value: Any, message: str) -> None:
    path = write(tmp_path, "ncsnpp_ve")
    beside = path.with_suffix(".json")
    told = json.loads(beside.read_text())
    if value is None:
        del told[section][key]
    else:
        told[section][key] = value
    beside.write_text(json.dumps(told))
    with pytest.raises(sd.InputError) as caught:
        sd.load_pretrained(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.data.update(name="cifar10"), "missing all_modules."),
        (lambda c: c.network.update(name="unet"), "network.name='unet': expected 'ddpm', 'ddpmpp' or 'ncsnpp'"),
        (lambda c: c.network.update(name="ddpmpp"), "does not fit the network as configured"),
        (lambda c: c.denoiser.update(prediction="v"), "denoiser.prediction='v'"),
        (lambda c: c.sde.ve.update(sigma_max=90.0), "sde.ve.sigma_max=90.0: expected 100"),
    ],
)
def test_configurations_of_something_else(
    checkpoints: dict[str, Path], tmp_path: Path, change: Callable[[ConfigDict], object], message: str
) -> None:
    bare = shutil.copy(checkpoints["ncsnpp_ve"], tmp_path / "checkpoint_8.pth")
    with pytest.raises(sd.InputError) as caught:
        sd.load_pretrained(bare, config=described(change))
    assert message in str(caught.value)


def test_bad_sources_are_one_line(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(source: Path | str, *more: str, workdir: str = "w") -> str:
        return refused(capsys, "convert", f"--source={source}", f"--workdir={tmp_path / workdir}", *more)

    bare = shutil.copy(checkpoints["ncsnpp_ve"], tmp_path / "bare.pth")
    assert "give --source=FILE" in line("")
    assert "an existing file or folder" in line(tmp_path / "nowhere")
    assert "no loader recognises it" in line(tmp_path)
    assert "no architecture in it" in line(bare)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(bare.read_bytes()[:1000])
    shutil.copy(DATA / "ncsnpp_ve.json", tmp_path / "cut.json")
    assert "cut.pth: not a readable checkpoint" in line(cut)
    cut.write_bytes(pickle.dumps(Runs(), protocol=2))
    assert "could run code" in line(cut)
    assert "data.name='cifar10'" in line(checkpoints["ncsnpp_ve"], "--config.data.name=cifar10")
    assert main(["convert", f"--source={checkpoints['ddpm']}", f"--workdir={tmp_path / 'used'}", "--quiet"]) == 0
    assert "it holds a run already" in line(checkpoints["ddpm"], workdir="used")
    everywhere = [f"--workdir={tmp_path / 'used'}", "--device=cpu", "--quiet"]
    assert "data of shape (3, 8, 8)" in refused(capsys, "likelihood", *everywhere, "--config.data.name=cifar10")


def test_paper_config_is_the_papers() -> None:
    options = paper_config().training
    assert (options.grad_clip, options.flip, options.schedule, options.beta2) == (1.0, True, "constant", 0.999)


if __name__ == "__main__":
    for name in SHIPPED:
        shrink(Path(sys.argv[1]) / f"{name}.pth")
