"""How networks are run: bfloat16 within its rounding, float32 outside, compiled, and refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
from sde_diffusion import config as configuration
from sde_diffusion.commands.main import main
from sde_diffusion.evaluation.sweep import read_rows
from sde_diffusion.networks import NETWORKS, winograd
from sde_diffusion.networks.blocks import Attention
from sde_diffusion.networks.execution import Executed, bfloat16_pays, execute, lay_out, precision_of
from sde_diffusion.records import read_record
from sde_diffusion.runs.open import load_run
from sde_diffusion.stored_config import load_config
from tests.test_commands import refused, trained
from tests.test_networks import LABELS, OTHER_GRIDS, SMALL, awake, inputs

__all__ = ["trained"]

ROUNDING = 2.0**-8  # of one number in bfloat16


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def no_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_diffusion.networks.execution.bfloat16_pays", lambda device: False)


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sde_diffusion.networks.execution.bfloat16_pays", lambda device: True)


@pytest.mark.parametrize("name", NETWORKS.names())
def test_bfloat16_is_float32_within_its_rounding(name: str) -> None:
    """Errors of dozens of layers add up like noise: a few roundings of the output's size, and not none."""
    network = awake(NETWORKS.build(name, **SMALL[name]), std=0.1)
    x, label = inputs(name), LABELS["999 t"]
    exact, found = network(x, label), execute(network, "bfloat16")(x, label)
    assert found.dtype == torch.float32
    error = (found - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0.0 < error < 8 * ROUNDING


@pytest.mark.parametrize("data", OTHER_GRIDS)
def test_series_and_volumes_run_in_every_precision_and_layout(data: str) -> None:
    """Channels last is a layout of kernels over two sides and, as another one, over three; numbers do not change."""
    network = awake(NETWORKS.build("unet", **OTHER_GRIDS[data]), std=0.1)
    x, label = torch.randn(2, *OTHER_GRIDS[data]["shape"]), torch.tensor([1.0, 700.0])
    exact = network(x, label).detach()
    kernels = [p for p in network.parameters() if p.dim() > 2 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    for layout in ("channels_last", "contiguous"):
        assert lay_out(network, layout) is network
        plain = layout == "contiguous" or data == "series"
        assert all(p.is_contiguous() == plain for p in kernels)
        torch.testing.assert_close(execute(network, "float32")(x, label), exact)
        found = execute(network, "bfloat16", fused_attention=False, layout=layout)(x, label)
        error = (found - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert found.dtype == torch.float32
        assert 0.0 < error < 8 * ROUNDING
        network.zero_grad()
        found.square().sum().backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in kernels)


def test_a_layout_is_that_of_each_weight() -> None:
    """Of one network over several kinds of grids, too; what has no sides stays as it is."""
    network = nn.ModuleList([nn.Linear(4, 4), nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv3d(4, 4, 3)])
    network.register_buffer("filter", torch.randn(2, 2, 3, 3))
    before = {key: w.clone() for key, w in network.state_dict().items()}
    lay_out(network, "channels_last")
    assert network.get_parameter("2.weight").is_contiguous(memory_format=torch.channels_last)
    assert network.get_buffer("filter").is_contiguous(memory_format=torch.channels_last)
    assert network.get_parameter("3.weight").is_contiguous(memory_format=torch.channels_last_3d)
    assert all(network.get_parameter(f"{i}.weight").is_contiguous() for i in (0, 1))
    assert all(torch.equal(w, before[key]) for key, w in network.state_dict().items())
    lay_out(network, "contiguous")
    assert all(w.is_contiguous() for w in network.state_dict().values())
    with pytest.raises(sd.InputError, match="layout='auto': expected one of channels_last, contiguous"):
        lay_out(network, "auto")


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_run_says_what_it_can_be_told(monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """As the network does, and where that does not, it has no such attributes."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, mode: real(net, backend="eager"))
    network = awake(NETWORKS.build("mlp", num_classes=3, **SMALL["mlp"]))
    executed = execute(network, "bfloat16", compiled)
    assert (executed.conditions, executed.num_classes, executed.null_class) == (("classes",), 3, True)
    x, label, classes = inputs("mlp"), LABELS["999 t"], torch.tensor([0, 1, 3, 2])
    torch.testing.assert_close(
        executed(x, label, classes=classes), network(x, label, classes), rtol=0.0, atol=8 * ROUNDING * 4
    )
    own = execute(nn.Linear(2, 2), "bfloat16", compiled)
    for name in ("conditions", "num_classes", "null_class", "other"):
        assert getattr(own, name, None) is None
        with pytest.raises(AttributeError, match=name):
            getattr(own, name)


@pytest.mark.parametrize("name", [n for n in samplers.names() if "num_steps" in samplers.config(n)])
def test_the_state_stays_in_its_own_precision(name: str) -> None:
    seen = []

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            seen.append((x.dtype, label.dtype))
            out: Tensor = self.conv(x)
            assert out.dtype == torch.bfloat16
            return out

    result = samplers.build(name, num_steps=3).draw(sd.Denoiser(execute(Net(), "bfloat16"), sd.VPSDE()), (2, 1, 4, 4))
    assert result.x.dtype == torch.float32
    assert result.times.dtype == torch.float64
    assert set(seen) == {(torch.float32, torch.float32)}


@pytest.mark.usefixtures("no_hardware")
def test_auto_leaves_a_network_alone_where_bfloat16_does_not_pay() -> None:
    network = NETWORKS.build("mlp", **SMALL["mlp"])
    assert execute(network) is execute(network, "float32") is network
    assert precision_of(network) == precision_of(lambda x, label: x) == "float32"


@pytest.mark.usefixtures("hardware")
def test_auto_takes_bfloat16_where_it_pays() -> None:
    network = NETWORKS.build("mlp", **SMALL["mlp"])
    assert precision_of(execute(network)) == "bfloat16"
    assert execute(network, "float32") is network


AMX, DOT_PRODUCTS = "amx_tile", "avx512_bf16"


@pytest.fixture
def cpu_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes this CPU one with some instructions, by a maker."""

    def become(*instructions: str, name: str = "AMD EPYC 9R14 Processor") -> None:
        for one in (AMX, DOT_PRODUCTS):
            monkeypatch.setattr(torch.cpu, f"_is_{one}_supported", lambda one=one: one in instructions)
        monkeypatch.setattr("sde_diffusion.networks.execution.processor", lambda: name)

    return become


@pytest.mark.parametrize(
    ("instructions", "name", "pays"),
    [
        ((), "AMD EPYC 7763 64-Core Processor", False),
        ((DOT_PRODUCTS,), "AMD EPYC 9R14 Processor", True),
        ((DOT_PRODUCTS,), "AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD", True),
        ((DOT_PRODUCTS,), "Intel(R) Xeon(R) Processor", False),
        ((DOT_PRODUCTS, AMX), "Intel(R) Xeon(R) Platinum 8488C", True),
        ((AMX,), "Intel(R) Xeon(R) Platinum 8488C", True),
    ],
)
def test_bfloat16_pays_by_what_the_processor_has(
    instructions: tuple[str, ...], name: str, pays: bool, cpu_with: Callable[..., None]
) -> None:
    cpu_with(*instructions, name=name)
    assert bfloat16_pays(torch.device("cpu")) is pays
    network = NETWORKS.build("mlp", **SMALL["mlp"])
    assert precision_of(execute(network)) == ("bfloat16" if pays else "float32")


@pytest.mark.parametrize("instructions", [(), (DOT_PRODUCTS,), (AMX, DOT_PRODUCTS)])
def test_training_on_a_cpu_is_plain_unless_amx_multiplies(
    instructions: tuple[str, ...], cpu_with: Callable[..., None]
) -> None:
    cpu_with(*instructions)
    network = configuration.build_network(configuration.default_config(), (1, 8, 8))
    execute(network, training=True)
    kernels = [p for p in network.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert all(p.is_contiguous() == (AMX not in instructions) for p in kernels)


@pytest.mark.parametrize(
    ("options", "plain"),
    [
        ({"precision": "float32"}, False),
        ({"precision": "bfloat16"}, False),
        ({"precision": "float32", "training": True}, True),
        ({"precision": "float32", "training": True, "layout": "channels_last"}, False),
        ({"precision": "bfloat16", "training": True}, True),
        ({"precision": "float32", "layout": "contiguous"}, True),
    ],
)
def test_the_layout_is_the_one_that_pays_or_is_asked_for(
    options: dict[str, Any], plain: bool, cpu_with: Callable[..., None]
) -> None:
    """On a CPU gradients are faster in the plain layout, all else channels last; numbers do not change."""
    cpu_with(DOT_PRODUCTS)
    network = configuration.build_network(configuration.default_config(), (1, 8, 8))
    exact = network(inputs("unet"), LABELS["999 t"])
    execute(network, **options)
    kernels = [p for p in network.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert kernels
    assert all(p.is_contiguous() == plain for p in kernels)
    torch.testing.assert_close(network(inputs("unet"), LABELS["999 t"]), exact)


def test_plain_attention_is_the_same_function() -> None:
    """Matrix products and a softmax while the network runs, and PyTorch's own choice before and after."""
    network = awake(NETWORKS.build("unet", **{**SMALL["unet"], "attention": (4,)}))
    seen = []
    attention = next(m for m in network.modules() if isinstance(m, Attention))
    attention.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.flash_sdp_enabled()))
    x, label = inputs("unet"), LABELS["999 t"]
    for fused in (True, False):
        found = execute(network, "float32", fused_attention=fused)(x, label)
        torch.testing.assert_close(found, network(x, label))
    assert seen == [True, True, False, True]
    assert torch.backends.cuda.flash_sdp_enabled()


def test_no_device_without_numbers_is_said_to_pay() -> None:
    assert not bfloat16_pays(torch.device("meta"))
    assert not bfloat16_pays(torch.device("mps"))


def test_weights_are_trained_in_float32() -> None:
    network = awake(NETWORKS.build("unet", **SMALL["unet"]))
    executed = execute(network, "bfloat16")
    executed(inputs("unet"), LABELS["999 t"]).square().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in network.parameters() if p.grad is not None)
    assert [id(p) for p in executed.parameters()] == [id(p) for p in network.parameters()]


@pytest.mark.parametrize("training", [False, True])
def test_compiled_is_the_same_function(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    """Through the whole of the compiler but its code generation, which takes a minute."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net, mode: real(net, backend="aot_eager"))
    network = awake(NETWORKS.build("mlp", **SMALL["mlp"])).train(training)
    executed = execute(network, "float32", compiled=True)
    assert isinstance(executed, Executed)
    x, label = inputs("mlp"), LABELS["999 t"]
    torch.testing.assert_close(executed(x, label), network(x, label))
    for run in (executed, network):
        run(x, label).square().sum().backward()
    once, *_ = (p.grad for p in network.parameters() if p.grad is not None)
    network.zero_grad()
    network(x, label).square().sum().backward()
    twice, *_ = (p.grad for p in network.parameters() if p.grad is not None)
    torch.testing.assert_close(once, 2 * twice)


@pytest.mark.slow
def test_compiled_to_code(monkeypatch: pytest.MonkeyPatch) -> None:
    network = awake(NETWORKS.build("unet", **SMALL["unet"])).requires_grad_(False)
    x, label = inputs("unet"), LABELS["999 t"]
    exact = network(x, label)
    for precision, tolerance in (("float32", 1e-5), ("bfloat16", 8 * ROUNDING)):
        found = execute(network, precision, compiled=True)(x, label)
        assert (found - exact).abs().max() < tolerance * exact.abs().max() * 4


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.precision=half", "precision='half': expected one of auto, float32, bfloat16"),
        ("--config.layout=NHWC", "layout='NHWC': expected one of auto, channels_last, contiguous"),
        ("--config.fused_attention=2.5", "fused_attention"),
        ("--config.compile=maybe", "compile"),
        ("--config.tf32=3.5", "tf32"),
    ],
)
def test_bad_values_are_one_line(trained: Path, capsys: pytest.CaptureFixture[str], flag: str, words: str) -> None:
    assert words in refused(capsys, "sample", f"--workdir={trained}", "--device=cpu", flag)


def test_switches_want_a_bool() -> None:
    with pytest.raises(sd.InputError, match="compile=1: expected True or False"):
        execute(nn.Linear(1, 1), "float32", compiled=1)  # type: ignore[arg-type]
    with pytest.raises(sd.InputError, match="fused_attention='no': expected True or False"):
        execute(nn.Linear(1, 1), "float32", fused_attention="no")  # type: ignore[arg-type]


def test_workdirs_of_before_are_read(trained: Path, tmp_path: Path) -> None:
    content = json.loads((trained / "config.json").read_text())
    for key in ("precision", "layout", "fused_attention", "compile", "tf32"):
        del content["config"][key]
    del content["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = load_config(tmp_path)
    assert (config.precision, config.compile, config.tf32) == ("auto", False, False)
    assert (config.layout, config.fused_attention) == ("auto", True)


def sampled(workdir: Path, *flags: str) -> tuple[np.ndarray, dict[str, Any]]:
    quick = ("--sampler=ddim", "--steps=3", "--num_samples=4", "--quiet", "--device=cpu")
    out = workdir / f"drawn {' '.join(flags)}"
    assert main(["sample", f"--workdir={workdir}", f"--out={out}", *quick, *flags]) == 0
    with np.load(out / "samples.npz") as content:
        return content["z"], read_record(out / "samples.json")


def test_samples_name_their_precision(trained: Path) -> None:
    exact, facts = sampled(trained, "--config.precision=float32")
    assert facts["dtype"] == "float32"
    rounded, facts = sampled(trained, "--config.precision=bfloat16")
    assert facts["dtype"] == "bfloat16"
    assert rounded.dtype == np.float32
    assert 0.0 < np.abs(rounded - exact).max() < 16 * ROUNDING * np.abs(exact).max()


@pytest.mark.usefixtures("hardware")
def test_likelihood_is_float32_unless_asked(trained: Path) -> None:
    """Where sampling takes bfloat16 by itself, a score is still what it is elsewhere."""
    config = load_config(trained)
    assert load_run(trained, config, torch.device("cpu")).dtype == "bfloat16"
    found = []
    for flags in ([], ["--config.precision=float32"], ["--config.precision=bfloat16"]):
        few = ["--num_images=2", "--tolerance=1e-2", "--bound_draws=2", "--bound_steps=2", "--quiet", "--device=cpu"]
        assert main(["likelihood", f"--workdir={trained}", *few, *flags]) == 0
        with np.load(trained / "likelihood.npz") as content:
            found.append(content["log_p_ode_nats"])
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).all()


def test_benchmark_rows_name_their_precision(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    few = ["--samplers=ancestral", "--steps=2", "--seeds=7", "--num_samples=80", "--quiet", "--device=cpu"]
    for precision in ("float32", "bfloat16"):
        assert main(["benchmark", f"--workdir={trained}", *few, f"--config.precision={precision}"]) == 0
    rows = [row for row in read_rows(trained / "benchmark.jsonl") if row["seed"] == 7]
    assert [row["dtype"] for row in rows] == ["float32", "bfloat16"]


def test_training_in_bfloat16_follows_float32(tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        flags = ["--config.data.name=two_moons", "--config.network.name=mlp", "--config.training.num_steps=6"]
        flags += ["--config.training.log_every=1", f"--config.precision={precision}", "--quiet", "--device=cpu"]
        assert main(["train", f"--workdir={tmp_path / precision}", *flags]) == 0
        lines = (tmp_path / precision / "train.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=4 * ROUNDING)


@pytest.mark.parametrize(("batch", "side", "channels"), [(5, 32, 128), (64, 8, 130), (40, 12, 128)])
def test_fewer_multiplications_give_the_same_convolution(batch: int, side: int, channels: int) -> None:
    """Against float64, no worse than twice the direct form; a batch that does not divide into equal parts, too."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, side, side, generator=generator).to(memory_format=torch.channels_last)
    weight = (torch.randn(128, channels, 3, 3, generator=generator) / 30.0).to(memory_format=torch.channels_last)
    bias = torch.randn(128, generator=generator)
    with torch.no_grad():
        assert winograd.pays(x, weight)
        exact = nn.functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
        direct = nn.functional.conv2d(x, weight, bias, padding=1)
        found = winograd.convolve(x, weight, bias)
    assert found.is_contiguous(memory_format=torch.channels_last)
    rms = [(y - exact).square().mean().sqrt() for y in (found, direct)]
    assert rms[0] < 2 * rms[1]


def test_fewer_multiplications_only_where_they_pay() -> None:
    weight = torch.empty(128, 128, 3, 3, memory_format=torch.channels_last)
    x = torch.empty(16, 128, 16, 16)
    assert not winograd.pays(x, weight)  # gradients are wanted
    with torch.no_grad():
        assert winograd.pays(x, weight)
        assert not winograd.pays(x.double(), weight.double())
        assert not winograd.pays(x[:15], weight)
        assert not winograd.pays(torch.empty(32, 128, 14, 14), weight)
        assert not winograd.pays(x, weight[:64])
        assert not winograd.pays(x, weight.contiguous())
        assert not winograd.pays(x.to("meta"), weight.to("meta"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not winograd.pays(x, weight)
