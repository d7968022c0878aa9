"""What fake devices cannot show, on a real card: the CPU's numbers, waits of the host, resuming, bfloat16.

All of it is skipped without one. ``benchmarks/gpu.py`` runs it, and measures.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import samplers
import sde_diffusion as sd
from sde_diffusion import bounds, ops
from sde_diffusion.commands.main import main
from sde_diffusion.denoisers import PREDICTIONS
from sde_diffusion.guidance import ClassifierFree, DynamicThreshold, StaticThreshold
from sde_diffusion.labels import NOISE_LABELS
from sde_diffusion.sdes import SDES
from tests.test_no_float64 import Net

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
SHAPE = (4, 1, 8, 8)
ROUNDING = 2.0**-8  # of one number in bfloat16


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """float32 means float32, and what is added in an order is added in that order."""
    torch.manual_seed(0)
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32, convolutions.deterministic
    products.allow_tf32, convolutions.allow_tf32, convolutions.deterministic = False, False, True
    yield
    products.allow_tf32, convolutions.allow_tf32, convolutions.deterministic = before


def on_both(
    sde: sd.SDE | None = None, prediction: str = "eps", label: str = "log_snr"
) -> tuple[sd.Denoiser, sd.Denoiser]:
    """Return a denoiser on the CPU and the same on the card."""
    here = sd.Denoiser(Net().requires_grad_(False), sde or sd.VPSDE(), prediction, label, sigma_data=0.5)
    return here, copy.deepcopy(here).to(DEVICE)


def assert_same(found: Tensor, expected: Tensor, share: float = 1e-3) -> None:
    """On the card, and the CPU's numbers to a share of the largest: dozens of float32 operations, in another order."""
    assert found.device.type == DEVICE
    assert found.dtype == expected.dtype
    assert torch.isfinite(found).all()
    assert (found.cpu() - expected).abs().max() <= share * expected.abs().max()


def sampler_of(name: str, num_steps: int = 4) -> samplers.Sampler:
    return samplers.build(name, **({"num_steps": num_steps} if "num_steps" in samplers.config(name) else {}))


def waits(run: Callable[[], object]) -> int:
    """Return how often the host waited for the card, to read from it or to copy to it."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in seen)


@pytest.mark.parametrize("name", samplers.names())
@pytest.mark.parametrize("sde_name", SDES.names())
def test_every_sampler_draws_what_it_draws_on_the_cpu(sde_name: str, name: str) -> None:
    """From the same noise. Of steps that are chosen by their error the solver's tolerance is left."""
    here, there = on_both(SDES.build(sde_name))
    sampler = sampler_of(name)
    share = 1e-3 if hasattr(sampler, "num_steps") else 1e-2
    assert_same(sampler.draw(there, SHAPE).x, sampler.draw(here, SHAPE).x, share)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("label", NOISE_LABELS.names())
def test_every_prediction_and_noise_label(prediction: str, label: str) -> None:
    here, there = on_both(None, prediction, label)
    assert_same(sampler_of("heun").draw(there, SHAPE).x, sampler_of("heun").draw(here, SHAPE).x)


@pytest.mark.parametrize(
    "wrap",
    [lambda d: StaticThreshold(d, 0.5), lambda d: DynamicThreshold(d), lambda d: ClassifierFree(d, 3.0)],
    ids=["static", "dynamic", "classifier-free"],
)
def test_wrappers(wrap: Callable[[sd.Denoiser], sd.AbstractDenoiser]) -> None:
    here, there = map(wrap, on_both())
    assert_same(sampler_of("ddim").draw(there, SHAPE).x, sampler_of("ddim").draw(here, SHAPE).x)


@pytest.mark.parametrize("name", [n for n in samplers.names() if "num_steps" in samplers.config(n)])
def test_the_host_does_not_wait_for_steps(name: str) -> None:
    """As often in 12 steps as in 3: for what is copied before the loop, and for one look after it."""
    _, there = on_both()
    few, many = (waits(lambda n=n: sampler_of(name, n).draw(there, SHAPE)) for n in (3, 12))
    assert few == many > 0


def test_an_adaptive_solver_waits_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside its deliberate looks, as often whatever the tolerance."""
    _, there = on_both()
    reads = 0

    def counted(flag: Tensor) -> bool:
        nonlocal reads
        reads += 1
        return bool(flag.item())

    monkeypatch.setattr(ops, "host_bool", counted)
    beside = []
    for tolerance in (1e-1, 1e-4):
        reads = 0
        sampler = samplers.build("probability_flow", rtol=tolerance, atol=tolerance)
        beside.append(waits(lambda sampler=sampler: sampler.draw(there, SHAPE)) - reads)
    assert beside[0] == beside[1]


def test_likelihood_is_the_closed_form() -> None:
    """Of a Gaussian of unit variance, which the prior of a VP SDE is too: the flow stands still."""
    law = sd.Gaussian([0.0] * 3, torch.eye(3))
    x = torch.randn(8, 3)
    found = sd.log_likelihood(law.denoiser(sd.VPSDE()).to(DEVICE), x.to(DEVICE), divergence="exact", check=2)
    assert found.log_prob.device.type == DEVICE
    assert found.log_prob.dtype == torch.float64
    torch.testing.assert_close(found.log_prob.cpu(), law.log_prob(x.double()), rtol=0.0, atol=1e-3)


def test_likelihood_and_bounds_are_the_cpus() -> None:
    """To the solver's tolerance of 1e-4 nats a dimension, and its like in the bounds."""
    here, there = on_both()
    x = torch.randn(SHAPE)
    found = [sd.log_likelihood(d, x.to(d.device), check=1).log_prob for d in (here, there)]
    assert_same(found[1], found[0])
    found = [
        bounds.continuous_bound(d, x.to(d.device), sd.NoiseStream(0, range(len(x))), draws=4).total
        for d in (here, there)
    ]
    assert_same(found[1], found[0])


def train(workdir: Path, steps: int, *flags: str, device: str = DEVICE, precision: str = "float32") -> None:
    """Train a small network for so many steps in all, with a line of the log for each."""
    run = [f"--workdir={workdir}", f"--device={device}", "--quiet", f"--config.precision={precision}"]
    small = ["--config.network.unet.channels=8", "--config.training.batch_size=8", "--config.training.warmup_steps=2"]
    length = ["--config.training.schedule=constant", "--config.training.log_every=1"]
    assert main(["train", *run, *small, *length, f"--config.training.num_steps={steps}", *flags]) == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_training_equals_uninterrupted_bit_for_bit(precision: str, tmp_path: Path) -> None:
    flags = ["--config.fused_attention=False", "--config.network.unet.dropout=0.1"]
    train(tmp_path / "once", 6, *flags, precision=precision)
    for steps in (3, 6):
        train(tmp_path / "twice", steps, *flags, precision=precision)
    end = Path("checkpoints") / "step_00000006" / "network.safetensors"
    once, twice = (load_file(tmp_path / name / end) for name in ("once", "twice"))
    assert once.keys() == twice.keys()
    assert all(torch.equal(weight, twice[name]) for name, weight in once.items())


def test_training_in_bfloat16_follows_float32_and_the_cpus(tmp_path: Path) -> None:
    """Losses of a few steps: to float32's rounding between the devices, to bfloat16's between the precisions."""
    losses = {}
    for name, device, precision in (
        ("cpu", "cpu", "float32"),
        ("card", DEVICE, "float32"),
        ("low", DEVICE, "bfloat16"),
    ):
        train(tmp_path / name, 6, device=device, precision=precision)
        lines = (tmp_path / name / "train.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    np.testing.assert_allclose(losses["card"], losses["cpu"], rtol=1e-3)
    np.testing.assert_allclose(losses["low"], losses["card"], rtol=8 * ROUNDING)
    assert losses["low"] != losses["card"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_commands(precision: str, tmp_path: Path) -> None:
    """Train, sample with the way, score, all on the card."""
    train(tmp_path, 2, precision=precision)
    run = [f"--workdir={tmp_path}", f"--device={DEVICE}", "--quiet", f"--config.precision={precision}"]
    assert main(["sample", *run, "--num_samples=4", "--steps=3", "--trajectory"]) == 0
    few = ["--num_images=2", "--tolerance=1e-2", "--bound_draws=2", "--bound_steps=2"]
    assert main(["likelihood", *run, *few]) == 0
    with np.load(tmp_path / "likelihood.npz") as content:
        assert np.isfinite(content["log_p_ode_nats"]).all()
