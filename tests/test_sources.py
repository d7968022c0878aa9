"""Folders of diffusers as people have them: layouts, variants, schedulers, conditions; each loads or says why."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion import config as configuration
from sde_diffusion.commands.main import main
from sde_diffusion.errors import InputError
from sde_diffusion.pretrained import read_source
from sde_diffusion.training.loaders.diffusers_scheduler import CHAINS, EDM, OTHERS, READ, SAMPLING, VE
from tests.test_unet2d import FIR, WEIGHTS, edit, load, pictures, random_model, relative, saved

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pipeline"), random_model())


def one_folder(source: Path, target: Path) -> Path:
    """All files of a pipeline in the root, as the first ones were published."""
    target.mkdir()
    for path in source.rglob("*"):
        if path.is_file():
            shutil.copy(path, target)
    return target


def pickled(path: Path) -> Path:
    """The weights as ``.bin``."""
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    return path.with_suffix(".bin")


def in_shards(path: Path, variant: str = "") -> None:
    """The weights in two files with the index of them, as diffusers names them."""
    tensors = load_file(path)
    names, where = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        name = f"diffusion_pytorch_model{variant}-0000{i}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, path.parent / name)
        where.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (path.parent / f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "whole": lambda model: None,
    "pickled": lambda model: pickled(model / WEIGHTS),
    "in half precision alone": lambda model: (model / WEIGHTS).rename(model / WEIGHTS.replace(".s", ".fp16.s")),
    "in shards": lambda model: in_shards(model / WEIGHTS),
    "in shards of a variant": lambda model: in_shards(model / WEIGHTS, ".fp16"),
    "beside half precision": lambda model: save_file(
        {key: 0.0 * value for key, value in load_file(model / WEIGHTS).items()},
        model / WEIGHTS.replace(".s", ".fp16.s"),
    ),
    "beside a pickle": lambda model: torch.save({}, model / WEIGHTS.replace("safetensors", "bin")),
}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_same_weights(layout: str, flat: bool, folder: Path, tmp_path: Path) -> None:
    expected = load(folder)
    path = one_folder(folder, tmp_path / "flat") if flat else shutil.copytree(folder, tmp_path / "pipeline")
    LAYOUTS[layout](path if flat else path / "unet")
    found = load(path)
    assert found.config == expected.config
    assert found.source["difference"] <= 1e-5
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.weights.items())
    (path / "model_index.json").unlink()
    assert load(path).weights.keys() == expected.weights.keys()


def test_a_published_folder_becomes_a_run(folder: Path, tmp_path: Path) -> None:
    path, run = one_folder(folder, tmp_path / "ddpm"), tmp_path / "run"
    assert main(["convert", f"--source={path}", f"--workdir={run}", "--quiet"]) == 0
    assert main(["sample", f"--workdir={run}", "--steps=2", "--num_samples=1", "--quiet", "--device=cpu"]) == 0


def test_ve_of_the_first_releases(tmp_path: Path) -> None:
    """Their Fourier frequencies are there under two names, in one folder."""
    model = random_model(**FIR, time_embedding_type="fourier")
    path = one_folder(saved(tmp_path / "new", model), tmp_path / "old")
    expected = load(path).weights
    tensors = load_file(path / WEIGHTS)
    tensors["time_proj.W"] = tensors["time_proj.weight"].clone()
    torch.save(tensors, path / WEIGHTS.replace("safetensors", "bin"))
    (path / WEIGHTS).unlink()
    found = load(path)
    assert found.source["difference"] <= 1e-5
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in expected.items())


def test_averages_beside_the_network_in_training(tmp_path: Path) -> None:
    """A training script's checkpoint: ``unet_ema`` with what its average was told, the scheduler a folder above."""
    out = saved(tmp_path / "out", random_model())
    checkpoint = out / "checkpoint-70"
    shutil.copytree(out / "unet", checkpoint / "unet")
    average = diffusers.training_utils.EMAModel(
        random_model(act_fn="silu", dropout=0.0).parameters(),
        model_cls=diffusers.UNet2DModel,
        model_config=random_model().config,
    )
    average.optimization_step = 65
    average.save_pretrained(checkpoint / "unet_ema")
    with torch.no_grad():
        tensors = load_file(checkpoint / "unet" / WEIGHTS)
    save_file({key: 2.0 * value for key, value in tensors.items()}, checkpoint / "unet" / WEIGHTS)
    found = load(checkpoint)
    assert found.step == 65
    assert found.raw is not None
    assert all(torch.equal(2.0 * tensor, found.raw[name]) for name, tensor in found.weights.items())
    shutil.rmtree(checkpoint / "unet_ema")
    assert (load(checkpoint).step, load(checkpoint).raw) == (70, None)


def test_a_rectangle(tmp_path: Path) -> None:
    model = random_model(sample_size=[4, 12])
    found = load(saved(tmp_path, model))
    assert found.config["data"]["shape"] == (3, 4, 12)
    assert found.source["difference"] <= 1e-5


@pytest.mark.parametrize("groups", [None, 2])
def test_the_middle_of_old_networks_that_scale_and_shift(groups: int | None, tmp_path: Path) -> None:
    """Up to 0.16 their attention in the middle was normalised in as many groups as all else, and nothing said so."""
    then = random_model(resnet_time_scale_shift="scale_shift", attn_norm_num_groups=groups or 4)
    path = saved(tmp_path, then)
    if groups is None:
        edit(path / "unet" / "config.json", attn_norm_num_groups=None, _diffusers_version="0.15.0")
    found = load(path)
    assert found.source["difference"] <= 1e-5
    _same_eps(path, then)


def _same_eps(path: Path, model: Any, **told: Tensor) -> None:
    """Our denoiser of a folder has the ε of their model to rounding in float32."""
    denoiser = sd.load_pretrained(path)
    x, index = pictures(model), torch.tensor([0, 17, 999])
    with torch.no_grad():
        theirs = model(x, index, class_labels=next(iter(told.values()), None)).sample
        assert relative(denoiser(x, (index.double() + 1.0) / 1000.0, **told).eps, theirs) <= 1e-5


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
def test_a_number_is_told(embedding: str, tmp_path: Path) -> None:
    model = random_model(class_embed_type="timestep", time_embedding_type=embedding)
    path = saved(tmp_path, model)
    assert load(path).source["difference"] <= 1e-5
    denoiser = sd.load_pretrained(path)
    assert denoiser.conditions == ("number",)
    if embedding == "positional":
        _same_eps(path, model, number=torch.tensor([1.5, 20.0, 300.0]))
    with pytest.raises(InputError, match=r"number=None: expected number \(B, \*\), which this network must be told"):
        denoiser(pictures(model), 0.5)


def test_a_code_is_told(tmp_path: Path) -> None:
    model = random_model(class_embed_type="identity")
    path = saved(tmp_path, model)
    assert load(path).source["difference"] <= 1e-5
    code = torch.randn(3, 32, generator=torch.Generator().manual_seed(3))
    _same_eps(path, model, code=code)
    with pytest.raises(InputError, match="number='given': expected none: this network is told no number"):
        sd.load_pretrained(path).net(pictures(model), torch.zeros(3), number=torch.zeros(3), code=code)


def test_a_learned_variance(tmp_path: Path) -> None:
    """Twice the channels: ε, and the reverse variance between its two bounds."""
    model = random_model(out_channels=6)
    path = saved(tmp_path, model, diffusers.DDPMScheduler(variance_type="learned_range"))
    assert load(path).config["sampler"]["ancestral"]["variance"] == "predicted"
    denoiser = sd.load_pretrained(path)
    x = pictures(model)
    with torch.no_grad():
        theirs = model(x, torch.tensor(499)).sample
        ours = denoiser(x, 0.5)
    assert relative(ours.eps, theirs[:, :3]) <= 1e-5
    assert ours.variance_fraction is not None
    assert relative(ours.variance_fraction, 0.5 * (theirs[:, 3:] + 1.0)) <= 1e-5


@pytest.mark.parametrize("name", CHAINS)
def test_every_solver_of_the_chain_has_its_betas(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their tables are products of numbers in float32: 1000 roundings of 6e-8."""
    theirs = getattr(diffusers, name)()
    path = saved(tmp_path, random_model())
    theirs.save_pretrained(path / "scheduler")
    denoiser = sd.load_pretrained(path)
    times = (torch.arange(1000).double() + 1.0) / 1000
    torch.testing.assert_close(denoiser.sde.alpha(times) ** 2, theirs.alphas_cumprod.double(), rtol=6e-5, atol=0.0)
    line = capsys.readouterr().err
    assert f"timestep_spacing={theirs.config.timestep_spacing!r}" in line if "timestep_spacing" in theirs.config else 1


def test_options_of_all_that_is_read_are_known() -> None:
    """Of the installed release; what it adds is seen here."""
    for name in (*CHAINS, *EDM, VE):
        for key in inspect.signature(getattr(diffusers, name).__init__).parameters:
            assert key in (*READ, *SAMPLING, "self", "num_train_timesteps"), f"{name}: {key}"


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", EDM)
def test_karras_preconditioning_is_theirs(name: str, prediction: str, tmp_path: Path) -> None:
    """x̂₀ from their own functions: the scaled input, the label, and the two weights of the output."""
    scheduler = getattr(diffusers, name)(sigma_data=0.7, sigma_max=50.0, prediction_type=prediction)
    model = random_model()
    path = saved(tmp_path, model, scheduler)
    denoiser = sd.load_pretrained(path)
    assert denoiser.sde == sd.VESDE(sigma_min=0.002, sigma_max=50.0)
    x, sigma = pictures(model), torch.tensor(1.3)
    with torch.no_grad():
        seen, label = scheduler.precondition_inputs(x, sigma), scheduler.precondition_noise(sigma)
        theirs = scheduler.precondition_outputs(x, model(seen, label).sample, sigma)
        t = (sigma.double() / 0.002).log() / torch.tensor(50.0 / 0.002, dtype=torch.float64).log()
        assert relative(denoiser(x, t).x0, theirs) <= 1e-5
    config = read_source(path, configuration.default_config(), describes=False).config
    assert config.objective.denoising.weighting.edm.sigma_data == 0.7
    configuration.build_objective(config)


REASONS = {
    "FlowMatchEulerDiscreteScheduler": "a flow that joins data and noise by straight lines",
    "CMStochasticIterativeScheduler": "its network jumps to data in a few steps",
    "LCMScheduler": "its network jumps to data in a few steps",
    "VQDiffusionScheduler": "it is for tokens",
    "KarrasVeScheduler": "it does not say how the network is told the time",
    "IPNDMScheduler": "its network is told an angle",
    "CosineDPMSolverMultistepScheduler": "its network is told the angle atan σ",
    "EDMTypoScheduler": "not known here",
}
OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"my_option": 3}, "my_option=3: not known of DDPMScheduler"),
    ({"prediction_type": "flow_prediction"}, "a flow that joins"),
    ({"variance_type": "learned_range"}, "variance_type='learned_range': expected a network with twice the channels"),
    ({"variance_type": "huge"}, "variance_type='huge': not supported"),
    ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "its network is told ¼ log σ"),
    ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "a flow that joins"),
    ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "prediction_type='sample': not supported"),
    ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.0}, "sigma_data=0.0: expected a number above 0"),
]


@pytest.mark.parametrize(("changes", "message"), [*(({"_class_name": n}, m) for n, m in REASONS.items()), *OPTIONS])
def test_other_noise_is_refused_for_its_reason(
    changes: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    """And never with the name of another scheduler that is merely spelt like it."""
    path = shutil.copytree(folder, tmp_path / "pipeline")
    edit(path / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(InputError) as caught:
        load(path)
    assert message in str(caught.value)
    assert "did you mean" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reasons_are_of_schedulers_that_are_not_read() -> None:
    assert not [start for start in OTHERS for name in (*CHAINS, *EDM, VE) if name.startswith(start)]


@pytest.mark.parametrize(("told", "expected"), [(False, "x0"), (True, "eps")])
def test_the_prediction_by_its_first_name(told: bool, expected: str, folder: Path, tmp_path: Path) -> None:
    path = shutil.copytree(folder, tmp_path / "pipeline") / "scheduler" / "scheduler_config.json"
    content = {key: value for key, value in json.loads(path.read_text()).items() if key != "prediction_type"}
    path.write_text(json.dumps({**content, "predict_epsilon": told}))
    assert load(tmp_path / "pipeline").config["denoiser"]["prediction"] == expected


CONFIG = """
from sde_diffusion.config import default_config

def get_config():
    config = default_config()
    config.data.name = "image_folder"
    config.data.image_folder.image_size = 8
    config.sde.name = {sde!r}
    config.denoiser.noise_label.name = {label!r}
    config.denoiser.prediction = "eps"
    return config
"""


def test_without_a_scheduler_the_noise_is_told(folder: Path, tmp_path: Path) -> None:
    path, expected = shutil.copytree(folder / "unet", tmp_path / "model"), load(folder)
    with pytest.raises(InputError) as caught:
        load(path)
    for part in ("no scheduler_config.json", "sde (ddpm with its options)", "denoiser.noise_label (discrete)"):
        assert part in str(caught.value)
    pipeline = shutil.copytree(folder, tmp_path / "pipeline")
    shutil.rmtree(pipeline / "scheduler")
    with pytest.raises(InputError, match=r"\(model_index.json names DDPMScheduler, not its numbers\)"):
        load(pipeline)
    with pytest.raises(InputError, match="expected the folder of diffusers that it lies in"):
        sd.load_pretrained(pipeline / "unet" / WEIGHTS)
    (tmp_path / "told.py").write_text(CONFIG.format(sde="ddpm", label="discrete"))
    told = sd.load_pretrained(path, config=tmp_path / "told.py")
    assert all(torch.equal(told.net.state_dict()[name], tensor) for name, tensor in expected.weights.items())
    assert isinstance(told.sde, sd.DDPMChain)
    (tmp_path / "wrong.py").write_text(CONFIG.format(sde="ve", label="log_sigma"))
    with pytest.raises(InputError, match="noise_label='log_sigma': expected another, for the network is not told σ"):
        sd.load_pretrained(path, config=tmp_path / "wrong.py")


def test_ve_without_a_scheduler(tmp_path: Path) -> None:
    """Of pictures in [0, 1], as the label log(σ/2) says."""
    whole = saved(tmp_path / "whole", random_model(time_embedding_type="fourier"))
    path = shutil.copytree(whole / "unet", tmp_path / "model")
    text = CONFIG.format(sde="ve", label="log_sigma").replace("    return", SIGMAS + "    return")
    (tmp_path / "told.py").write_text(text)
    told, expected = sd.load_pretrained(path, config=tmp_path / "told.py"), sd.load_pretrained(whole)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(told(x, t).eps, expected(x, t).eps)


SIGMAS = """    config.sde.ve.sigma_min, config.sde.ve.sigma_max = 0.02, 2696.0
    config.denoiser.noise_label.log_sigma.scale = 0.5
"""


class Runs:
    """Runs code when it is unpickled by pickle itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo this must not run",)


BROKEN: list[tuple[str, Callable[[Path], object]]] = [
    ("the weights are in 2 files, of which number 2 is missing", lambda m: _lose_a_shard(m)),
    ("expected one variant of the weights, not ema, fp16", lambda m: _two_variants(m)),
    ("refused, it holds .*system, which could run code", lambda m: torch.save(Runs(), pickled(m / WEIGHTS))),
    ("expected a file of weights of diffusers: tensors by", lambda m: torch.save({"a": 3}, pickled(m / WEIGHTS))),
    ("not a readable file of weights of diffusers", lambda m: pickled(m / WEIGHTS).write_bytes(b"")),
    ("not a readable safetensors file", lambda m: (m / WEIGHTS).write_bytes(b"broken")),
]


def _lose_a_shard(model: Path) -> None:
    in_shards(model / WEIGHTS)
    (model / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def _two_variants(model: Path) -> None:
    for variant in (".fp16.s", ".ema.s"):
        shutil.copy(model / WEIGHTS, model / WEIGHTS.replace(".s", variant))
    (model / WEIGHTS).unlink()


@pytest.mark.parametrize(("message", "spoil"), BROKEN)
def test_broken_weights_are_one_line(
    message: str, spoil: Callable[[Path], object], folder: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(folder, tmp_path / "pipeline")
    spoil(path / "unet")
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert not re.search(r"[<>]", str(caught.value))
