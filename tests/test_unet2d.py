"""The network and the loader of diffusers' folders: the same weights give the same output, and all else is refused."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sde_diffusion as sd
from sde_diffusion import config as configuration
from sde_diffusion.commands.main import main
from sde_diffusion.errors import InputError
from sde_diffusion.networks import NETWORKS, UNet2D
from sde_diffusion.networks.resampling import fir_double, fir_halve
from sde_diffusion.pretrained import read_source
from sde_diffusion.stored_config import merge
from sde_diffusion.training.loaders import LOADERS, Pretrained
from sde_diffusion.training.loaders.diffusers_model import MODEL
from sde_diffusion.training.loaders.diffusers_scheduler import CHAINS, CLIPPED

diffusers = pytest.importorskip("diffusers")

PLAIN: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
}
FIR: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D"),
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
    "mid_block_scale_factor": 2.0**0.5,
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention nowhere, DDPM's embedding": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
        "downsample_padding": 0,
        "freq_shift": 1,
        "flip_sin_to_cos": False,
    },
    "attention on one way, no middle": {
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "mid_block_type": None,
        "time_embedding_dim": 24,
        "act_fn": "relu",
    },
    "resampled in blocks, classes": {
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D"),
        "num_class_embeds": 5,
        "act_fn": "mish",
    },
    "resampled in blocks that attend": {
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
    },
    "scale and shift, middle normalised": {"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 2},
    "one head, centred": {"attention_head_dim": None, "dropout": 0.3, "act_fn": "gelu", "center_input_sample": True},
    "heads that leave channels over": {"attention_head_dim": 5, "mid_block_scale_factor": 1.7},
    "three levels": {
        "block_out_channels": (8, 16, 12),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "UNetResDownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    },
    "one level, wide pictures": {
        "sample_size": (4, 6),
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8,),
        "down_block_types": ("AttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    },
    "rectangular pictures of classes": {"sample_size": (32, 48), "num_class_embeds": 5},
    "FIR": FIR,
    "FIR, three levels, centred": {
        **FIR,
        "block_out_channels": (32, 64, 32),
        "layers_per_block": 2,
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "center_input_sample": True,
    },
    "FIR down, plain up": {
        **FIR,
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 8,
        "resnet_time_scale_shift": "scale_shift",
    },
    "FIR up, plain down": {**FIR, "down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 8},
}
TOLD_SIGMA = ("resampled in blocks, classes", "one head, centred", "FIR", "FIR, three levels, centred")
GRID = [*((name, "positional") for name in MODELS), *((name, "fourier") for name in TOLD_SIGMA)]


def random_model(**options: Any) -> nn.Module:
    """A model of theirs with random weights everywhere, whose output has size 1 or so."""
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**{**PLAIN, **options})
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:  # the frequencies stay
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def saved(path: Path, model: nn.Module, scheduler: Any = None, **options: Any) -> Path:
    """A pipeline folder."""
    fourier = model.config.time_embedding_type == "fourier"
    if scheduler is None:
        scheduler = (diffusers.ScoreSdeVeScheduler if fourier else diffusers.DDPMScheduler)(**options)
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(path)
    return path


def load(path: Path, config: dict[str, Any] | None = None) -> Pretrained:
    loader = LOADERS.build("diffusers")
    assert loader.recognises(path)
    return loader.load(path, config)


def built(pretrained: Pretrained, folder: Path) -> tuple[ConfigDict, sd.Denoiser]:
    """The run's configuration and denoiser, through JSON as commands read it."""
    values = dict(pretrained.config)
    shape = values.pop("data")["shape"]
    config = configuration.default_config()
    merge(config, json.loads(json.dumps(values)), folder)
    network = configuration.build_network(config, shape)
    network.load_state_dict(pretrained.weights)
    return config, configuration.build_denoiser(config, network.eval().requires_grad_(False))


def pictures(model: nn.Module, count: int = 3) -> Tensor:
    size = model.config.sample_size
    sides = (size, size) if isinstance(size, int) else size
    return torch.randn(count, model.config.in_channels, *sides, generator=torch.Generator().manual_seed(1))


def relative(a: Tensor, b: Tensor) -> float:
    assert b.norm() > 0.1
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("name", "embedding"), GRID)
def test_same_weights_same_eps(name: str, embedding: str, tmp_path: Path) -> None:
    """In fp32 to what the loader promises, by its own check, and to rounding in float64 through the run's denoiser.

    (There is more than rounding between the two where waves of cos 2π w log σ are told log σ from float64: their angles
    reach thousands. Both are told the very same number in the check.)
    """
    model = random_model(**MODELS[name], time_embedding_type=embedding)
    pretrained = load(saved(tmp_path, model))
    assert pretrained.source["difference"] <= 1e-5
    _, denoiser = built(pretrained, tmp_path)
    denoiser.net.double()
    model.double()
    x = pictures(model).double()
    told = {"classes": torch.tensor([0, 4, 2])} if model.config.num_class_embeds else {}
    labels = {"class_labels": told["classes"]} if told else {}
    with torch.no_grad():
        if embedding == "positional":
            index = torch.tensor([0, 17, 999])
            theirs, t = model(x, index, **labels).sample, (index.double() + 1.0) / 1000.0
        else:  # their x = (ours + 1)/2 and σ = ours/2
            t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
            sigma = 0.5 * denoiser.sde.sigma(t)
            theirs = -sigma[:, None, None, None] * model(0.5 * x + 0.5, sigma, **labels).sample
        assert relative(denoiser(x, t, **told).eps, theirs) <= 1e-5


def test_ddpm_of_cifar10_has_its_size() -> None:
    """google/ddpm-cifar10-32."""
    with torch.device("meta"):
        network = UNet2D(
            (3, 32, 32),
            widths=(128, 256, 256, 256),
            down=("conv", "conv+attention", "conv", "conv"),
            up=("conv", "conv", "conv+attention", "conv"),
            head_width=0,
            padding=0,
            eps=1e-6,
        )
    assert sum(p.numel() for p in network.parameters()) == 35_746_307


def test_defaults_are_theirs() -> None:
    """What a folder does not say is what diffusers would take."""
    taken = inspect.signature(diffusers.UNet2DModel.__init__).parameters
    for name, value in MODEL.items():
        if name in taken:  # not all releases have all of them
            assert taken[name].default == (tuple(value) if isinstance(value, list) else value), name
    for name, betas in CHAINS.items():
        taken = inspect.signature(getattr(diffusers, name).__init__).parameters
        defaults = [taken[key].default for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")]
        assert defaults == [1000, *betas], name
        assert ("clip_sample" in taken and taken["clip_sample"].default) is (name in CLIPPED), name
        assert taken["prediction_type"].default == "epsilon", name


SCHEDULERS: dict[str, dict[str, Any]] = {
    "linear": {"variance_type": "fixed_large"},
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"},
    "squaredcos_cap_v2": {"prediction_type": "sample", "variance_type": "fixed_large"},
    "sigmoid": {"prediction_type": "epsilon"},
    "trained_betas": {"trained_betas": [0.01, 0.02, 0.5, 0.4, 0.1, 0.2, 0.3]},
}


BOUNDS: list[dict[str, Any]] = [
    {"clip_sample": False},
    {"clip_sample": True},
    {"clip_sample_range": 0.3},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.7},
]


@pytest.mark.parametrize("clip", BOUNDS, ids=str)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_ancestral_sampling_is_theirs(
    name: str, clip: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of a loaded run: schedule, prediction, labels, variance, clipping and network, with shared noise."""
    schedule = {} if name == "trained_betas" else {"beta_schedule": name}
    steps = len(SCHEDULERS[name].get("trained_betas", range(6)))
    scheduler = diffusers.DDPMScheduler(steps, **schedule, **SCHEDULERS[name], **clip)
    model = random_model()
    _, denoiser = built(load(saved(tmp_path, model, scheduler)), tmp_path)
    config = read_source(tmp_path, configuration.default_config(), describes=False).config
    index = torch.arange(steps)
    times = (index.double() + 1.0) / steps
    theirs = torch.cumprod(1.0 - scheduler.betas.double(), dim=0)
    # Their betas are in float32: each 1 − β is off by 6e-8 of 1 at most.
    near = 6e-8 * steps / float((1.0 - scheduler.betas).min())
    torch.testing.assert_close(denoiser.sde.alpha(times) ** 2, theirs, rtol=near, atol=0.0)

    model.double()
    denoiser.net.double()
    scheduler.alphas_cumprod = denoiser.sde.alpha(times) ** 2
    scheduler.betas = denoiser.sde.betas
    scheduler.alphas = 1.0 - scheduler.betas
    x = pictures(model, 2).double()
    z = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(steps)]
    ours_z, their_z = iter(z), iter(z)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(their_z))
    sampler = configuration.build_sampler(config, "ancestral", num_steps=steps, grid="indices")
    ours = sampler.sample(configuration.wrap(config, denoiser), x, lambda *_: next(ours_z)).x
    with torch.no_grad():
        for j in reversed(index):
            x = scheduler.step(model(x, j).sample, int(j), x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)
    assert len([*ours_z]) == len([*their_z]) == 1  # none at the last step


@pytest.mark.parametrize("clip", BOUNDS, ids=str)
@pytest.mark.parametrize(("num_steps", "spacing"), [(8, "leading"), (4, "leading"), (4, "trailing")])
def test_ddim_sampling_is_theirs(
    num_steps: int, spacing: str, clip: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their DDIM bounds x₀ and steps with ε as it was predicted, with shared noise and at their times."""
    scheduler = diffusers.DDIMScheduler(8, **clip, timestep_spacing=spacing)
    model = random_model()
    config, denoiser = built(load(saved(tmp_path, model, scheduler)), tmp_path)
    model.double()
    denoiser.net.double()
    scheduler.alphas_cumprod = denoiser.sde.alpha((torch.arange(8).double() + 1.0) / 8) ** 2
    scheduler.set_timesteps(num_steps)
    x = pictures(model, 2).double()
    z = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(8)]
    ours_z, their_z = iter(z), iter(z)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddim.randn_tensor", lambda *_, **__: next(their_z))
    sampler, times = configuration.build_sampler(config, "ddim", eta=0.5), (scheduler.timesteps.double() + 1.0) / 8
    asked = configuration.wrap(config, denoiser)
    ours = sampler.sample(asked, x, lambda *_: next(ours_z), times=times).x  # type: ignore[call-arg]
    with torch.no_grad():
        for j in scheduler.timesteps:
            x = scheduler.step(model(x, j).sample, int(j), x, eta=0.5).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_a_loaded_run_draws_at_any_number_of_steps(tmp_path: Path) -> None:
    for name in ("positional", "fourier"):
        config, denoiser = built(load(saved(tmp_path / name, random_model(time_embedding_type=name))), tmp_path)
        for sampler in ("ddim", "heun", "pc"):
            x = configuration.build_sampler(config, sampler, num_steps=3).draw(denoiser, (2, 3, 8, 8), seed=0).x
            assert x.isfinite().all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pipeline"), random_model())


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_other_layouts_of_the_folder(folder: Path, tmp_path: Path) -> None:
    """The model alone with its scheduler beside or in it, attention by its old names, half precision."""
    expected = load(folder).weights
    path = tmp_path / "pipeline"
    shutil.copytree(folder, path)
    assert load(path / "unet").weights.keys() == expected.keys()
    shutil.move(path / "scheduler" / "scheduler_config.json", path / "unet")

    def age(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            old = re.sub(r"(attentions\.0)\.to_q\.", r"\1.query.", name)
            old = re.sub(r"(attentions\.0)\.to_k\.", r"\1.key.", old)
            old = re.sub(r"(attentions\.0)\.to_v\.", r"\1.value.", old)
            tensors[re.sub(r"(attentions\.0)\.to_out\.0\.", r"\1.proj_attn.", old)] = tensors.pop(name)

    edit_weights(path / "unet" / WEIGHTS, age)
    old = load(path / "unet")
    assert old.source["difference"] <= 1e-5
    assert all(torch.equal(old.weights[name], tensor) for name, tensor in expected.items())
    edit_weights(path / "unet" / WEIGHTS, lambda t: t.update({k: v.half() for k, v in t.items()}))
    assert all(tensor.dtype == torch.float32 for tensor in load(path / "unet").weights.values())


WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET, SCHEDULE, INDEX = "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        UNET,
        {"_class_name": "UNet2DConditionModel"},
        "_class_name='UNet2DConditionModel': a network that is told a text",
    ),
    (UNET, {"kernel": 5}, "config.json: kernel=5: not known of UNet2DModel here"),
    (UNET, {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}, "down_block_types='CrossAttnDownBlock2D'"),
    (
        UNET,
        {"up_block_types": ["KUpBlock2D", "UpBlock2D"]},
        "up_block_types='KUpBlock2D': not supported; supported: UpBlock2D",
    ),
    (UNET, {"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "down=.*either only levels of kind 'fir' or none"),
    (UNET, {"down_block_types": None}, "down_block_types=None: expected a value like"),
    (UNET, {"time_embedding_type": "learned"}, "time_embedding_type='learned': not supported"),
    (UNET, {"class_embed_type": "projection"}, "class_embed_type='projection': not supported"),
    (UNET, {"mid_block_type": "Other"}, "mid_block_type='Other'"),
    (UNET, {"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift='spatial'"),
    (UNET, {"downsample_type": "fir"}, "downsample_type='fir': not supported; supported: conv, resnet"),
    (UNET, {"downsample_padding": 2}, "downsample_padding=2"),
    (UNET, {"act_fn": "tanh"}, "act_fn='tanh'"),
    (UNET, {"out_channels": 4}, "out_channels=4: not supported; expected as many as in_channels"),
    (UNET, {"out_channels": 6}, "variance_type='fixed_small': expected 'learned_range'"),
    (UNET, {"sample_size": None}, "sample_size=None: expected the height and width"),
    (UNET, {"norm_num_groups": 3}, "groups=3: expected a divisor of 8 channels"),
    (UNET, {"norm_eps": "small"}, "norm_eps='small': expected a value like 1e-05"),
    (UNET, {"sample_size": 7}, r"shape=\(3, 7, 7\): expected sides divisible by 2"),
    (UNET, {"layers_per_block": 2}, r"unet: does not fit its config.json: missing down_blocks\.0\.resnets\.1\."),
    (UNET, {"add_attention": False}, r"unexpected mid_block\.attentions\.0\.group_norm"),
    (UNET, {"in_channels": 1, "out_channels": 1}, r"conv_in\.weight has shape \(8, 3, 3, 3\), not \(8, 1, 3, 3\)"),
    (UNET, {"time_embedding_type": "fourier"}, "'DDPMScheduler': not supported with time_embedding_type='fourier'"),
    (SCHEDULE, {"_class_name": "ScoreSdeVeScheduler"}, "not supported with time_embedding_type='positional'"),
    (SCHEDULE, {"prediction_type": "flow"}, "prediction_type='flow': not supported"),
    (SCHEDULE, {"beta_schedule": "laplace"}, "beta_schedule='laplace': not supported"),
    (SCHEDULE, {"beta_end": 2.0}, r"betas\[\d+\]=.*: expected every beta in"),
    (SCHEDULE, {"trained_betas": "abc"}, "trained_betas='abc': expected a list of numbers"),
    (SCHEDULE, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True: not supported"),
    (INDEX, {"unet": ["my_pipeline", "MyUNet"]}, r"unet=\['my_pipeline', 'MyUNet'\]: .* code outside of diffusers"),
    (INDEX, {"vqvae": ["diffusers", "VQModel"]}, "vqvae=.*expected a pipeline of unet and scheduler alone"),
]


@pytest.mark.parametrize(("file", "changes", "message"), REFUSED)
def test_what_we_do_not_have_is_named(
    file: str, changes: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(folder, tmp_path / "pipeline")
    edit(path / file, **changes)
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_broken_folders_are_one_clear_line(folder: Path, tmp_path: Path) -> None:
    def refused(message: str, spoil: Callable[[Path], object], **options: Any) -> None:
        path = shutil.copytree(folder, tmp_path / "pipeline")
        spoil(path)
        with pytest.raises(InputError, match=message) as caught:
            load(path, **options)
        assert "\n" not in str(caught.value)
        shutil.rmtree(path)

    refused("config.json.*there is no such file", lambda p: (p / UNET).unlink())
    refused("no scheduler_config.json in it or near it", lambda p: (p / SCHEDULE).unlink())
    refused(
        r"expected the weights, as diffusion_pytorch_model.safetensors or .bin; there is no such",
        lambda p: (p / "unet" / WEIGHTS).unlink(),
    )
    refused("not a readable safetensors file", lambda p: (p / "unet" / WEIGHTS).write_bytes(b"broken"))
    refused("expected a JSON file", lambda p: (p / UNET).write_text("{"))
    data = {"config": {"data": {"shape": (3, 16, 16)}}}
    refused(r"sample_size=8: the model is for pictures \(3, 8, 8\), the data are \(3, 16, 16\)", lambda p: None, **data)
    data = {"config": {"data": {"shape": (1, 8, 8)}}}
    refused("in_channels=3: the model is for", lambda p: None, **data)
    assert not LOADERS.build("diffusers").recognises(tmp_path)


def test_filters_are_one_three_three_one() -> None:
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    side = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8.0
    kernel = torch.outer(side, side).expand(3, 1, 4, 4)
    down = torch.nn.functional.conv2d(x, kernel, stride=2, padding=1, groups=3)
    up = torch.nn.functional.conv_transpose2d(x, 4.0 * kernel, stride=2, padding=1, groups=3)
    torch.testing.assert_close(fir_halve(x), down)
    torch.testing.assert_close(fir_double(x), up)


def test_one_graph_in_channels_last_and_bfloat16() -> None:
    """Compiled as one graph: no read of a device tensor by the host, which would break it."""
    options = {"widths": (32, 64), "num_blocks": 1, "num_classes": 2, "head_width": 0, "eps": 1e-4}
    kinds = {"down": ("fir", "fir+attention"), "up": ("fir+attention", "fir"), "groups": 0}
    net = NETWORKS.build("unet2d", shape=(3, 8, 8), **options, **kinds).to(memory_format=torch.channels_last)
    nn.init.normal_(net.head.weight)
    x, label, classes = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([0, 1])
    expected = net(x, label, classes).detach()
    assert expected.is_contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, label, classes), expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x, label, classes)
    torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.05 * float(expected.std()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (1, 6, 6), "widths": (8, 8, 8)}, "expected sides divisible by 4 for 3 levels; give fewer widths"),
        ({"widths": (7, 8)}, "an even number of at least 4 at first"),
        ({"down": ("conv",)}, "2 kinds of levels, one for each of widths"),
        ({"down": ("conv", "conv+atention")}, "down='conv+atention': unknown; did you mean 'conv.attention'"),
        ({"up": ("fir", "conv")}, "either only levels of kind 'fir' or none"),
        ({"groups": 5}, "groups=5: expected a divisor of 32 channels"),
        ({"head_width": 128}, "head_width=128: expected at most 64"),
        ({"middle": "both"}, "middle='both': expected one of attention, plain, none"),
        ({"activation": "tanh"}, "activation='tanh'"),
        ({"padding": 2}, "padding=2: expected 0 or 1"),
        ({"embedding": "fourrier"}, "embedding='fourrier': unknown; did you mean 'fourier'"),
        ({"frequency_shift": 16}, "shift=16: expected a number below half of 32 features"),
        ({"num_classes": -1}, "num_classes=-1"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("+", r"\+")), torch.device("meta"):
        NETWORKS.build("unet2d", **{"shape": (1, 8, 8), **options})


def test_classes_are_asked_for() -> None:
    """A network that has a row for each class and none for no class is told one."""
    told = UNet2D((1, 8, 8), num_classes=3)
    x, label = torch.randn(2, 1, 8, 8), torch.ones(2)
    with pytest.raises(InputError, match="classes=None: expected for each example one of the 3 classes") as caught:
        told(x, label)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"classes=3: expected 0 to 2$"):
        told(x, label, torch.tensor([0, 3]))


def test_rectangular_pictures_of_classes_load(tmp_path: Path) -> None:
    """Height before width, a row for each class of theirs and none for no class, by a name that says so."""
    model = random_model(sample_size=[32, 48], num_class_embeds=5)
    pretrained = load(saved(tmp_path, model))
    assert pretrained.config["data"]["shape"] == (3, 32, 48)
    assert torch.equal(pretrained.weights["classes.weight"], model.class_embedding.weight)
    network = NETWORKS.build("unet2d", shape=(3, 32, 48), **pretrained.config["network"]["unet2d"])
    network.load_state_dict(pretrained.weights)
    assert (network.conditions, network.num_classes, network.null_class) == (("classes",), 5, False)
    with pytest.raises(InputError, match="one of the 5 classes"):
        network(pictures(model), torch.zeros(3))


@pytest.mark.parametrize(("classes", "hint"), [(0, ""), (5, " --classes=0")])
def test_convert_says_how_to_sample(
    classes: int, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that must be told a class is told one."""
    source, run = saved(tmp_path / "theirs", random_model(num_class_embeds=classes or None)), tmp_path / "run"
    assert main(["convert", f"--source={source}", f"--workdir={run}"]) == 0
    assert capsys.readouterr().out.endswith(f"next: sde-diffusion sample --workdir={run}{hint}\n")
