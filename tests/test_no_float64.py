"""Devices without float64 (MPS): sampling, training, bounds and likelihoods make no such tensor there.

FakeTensorMode knows no "mps" where PyTorch is built without it, and differentiates on no device that is not there. So
PyTorch's own "meta" device stands in: tensors with a shape and a dtype and no numbers, through which gradients flow.
``ops.WITHOUT_FLOAT64`` counts it among the devices that have none, every operation that returns float64 there fails, as
it does on MPS, and what the host reads from it are ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import samplers
import samplers.base
import sde_diffusion as sd
from sde_diffusion import bounds, ops
from sde_diffusion.codecs.grey_levels import GreyLevels
from sde_diffusion.data import Examples
from sde_diffusion.evaluation.scoring import Scorer, ScoringOptions
from sde_diffusion.noise import Words
from sde_diffusion.objectives import TIMES, WEIGHTINGS
from sde_diffusion.runs.open import load_run
from sde_diffusion.runs.sample import draw
from sde_diffusion.sdes import SDES
from sde_diffusion.stored_config import load_config
from sde_diffusion.training import checkpoints
from sde_diffusion.training.checkpoints import TrainingState
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.loop import TrainingOptions, train
from sde_diffusion.training.muon import Muon
from tests.test_commands import trained

__all__ = ["trained"]

SHAPE = (4, 1, 8, 8)
DEVICE = torch.device("meta")


class Float64OnDevice(Exception):
    """An operation returned float64 on a device that has none."""


class WithoutFloat64(TorchDispatchMode):
    """Refuses float64 on the device, and makes up what the host reads from it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device == DEVICE:
            return {torch.bool: True, torch.float32: 1.0}.get(args[0].dtype, 0)
        to_host = func is torch.ops.aten._to_copy.default and kwargs.get("device") == torch.device("cpu")
        if to_host and args[0].device == DEVICE:
            if kwargs.get("dtype") == torch.float64:  # it is cast where it lies
                raise Float64OnDevice(str(func))
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        if any(isinstance(a, Tensor) and a.device == DEVICE and a.dtype == torch.float64 for a in tree_leaves(out)):
            raise Float64OnDevice(str(func))
        return out


@pytest.fixture(autouse=True)
def no_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ops, "WITHOUT_FLOAT64", ("mps", DEVICE.type))
    monkeypatch.setattr(samplers.base, "host_bool", lambda flag: False)  # nothing is non-finite
    with WithoutFloat64():
        yield


class Net(nn.Module):
    """A convolution that is told the time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.cat([x, label.sin()[:, None, None, None].expand_as(x)], dim=1))
        return out


def denoiser(sde: sd.SDE | None = None) -> sd.Denoiser:
    return sd.Denoiser(Net().to(DEVICE), sde or sd.VPSDE())


def state(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.zeros(shape, device=DEVICE)


def test_one_function_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert ops.widest_float(torch.device("mps")) == torch.float32
    assert ops.widest_float(torch.device("cpu")) == ops.widest_float(torch.device("cuda")) == torch.float64


@pytest.mark.parametrize(
    "make", [lambda x: x.double(), lambda x: x.cpu().double().to(DEVICE), lambda x: x.to("cpu", torch.float64)]
)
def test_float64_is_caught(make: Any) -> None:
    """The harness works; what is cast on the host is no fault."""
    with pytest.raises(Float64OnDevice):
        make(state())
    assert state().cpu().double().to(DEVICE, torch.float32).dtype == torch.float32


@pytest.mark.parametrize("sde_name", SDES.names())
@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler(name: str, sde_name: str) -> None:
    """From the start to the last state, a look at it after each step included."""
    options = {"num_steps": 3} if "num_steps" in samplers.config(name) else {}
    seen = []
    result = samplers.build(name, **options).draw(
        denoiser(SDES.build(sde_name)), SHAPE, callback=lambda step, t, x: seen.append((t.dtype, x.dtype))
    )
    assert (result.x.device, result.x.dtype) == (DEVICE, torch.float32)
    assert set(seen) == {(torch.float32, torch.float32)}


def test_along_a_path() -> None:
    path = sd.BrownianPath(0, range(SHAPE[0]))
    assert samplers.build("pc", num_steps=3).sample(denoiser(), state(), path).x.dtype == torch.float32


def test_a_float64_state_is_refused() -> None:
    with pytest.raises(
        sd.InputError, match=r"dtype=torch.float64: expected torch.float32 on meta, which has no float64"
    ):
        samplers.build("ddim").draw(denoiser(), SHAPE, dtype=torch.float64)


@pytest.mark.parametrize("weighting", WEIGHTINGS.names())
@pytest.mark.parametrize("times", TIMES.names())
@pytest.mark.parametrize("sde_name", SDES.names())
def test_every_loss_and_its_gradient(sde_name: str, times: str, weighting: str) -> None:
    model = denoiser(SDES.build(sde_name))
    loss = sd.DenoisingScoreMatching(times, weighting)(model, state(), sd.NoiseStream(0, range(SHAPE[0])))
    assert loss.dtype == torch.float32
    loss.mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, Muon])
def test_training(optimizer: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    """The loop, from a batch on the host to the averaged weights; only what it saves stays away."""
    model = denoiser()
    net: nn.Module = model.net  # type: ignore[assignment]
    kept = TrainingState(net, EMA(net), optimizer(net.parameters()))
    options = TrainingOptions(num_steps=3, batch_size=SHAPE[0], log_every=1)
    batch = Examples(torch.zeros(SHAPE), {}), torch.arange(SHAPE[0])
    step = kept.optimizer.step

    def unfused() -> None:
        """Fused kernels are not there on the meta device, and others know no ``found_inf``."""
        del kept.optimizer.found_inf  # type: ignore[attr-defined]
        step()

    with mock.patch.object(checkpoints, "save"), mock.patch.object(kept.optimizer, "step", unfused):
        train(tmp_path, model, kept, sd.DenoisingScoreMatching(), lambda step, noise: batch, options, 0, {}, quiet=True)
    assert kept.step == 3


@pytest.mark.parametrize("cell", [None, 2.0 / 255.0])
@pytest.mark.parametrize("sde_name", SDES.names())
def test_bounds(sde_name: str, cell: float | None) -> None:
    model, x = denoiser(SDES.build(sde_name)), state()
    times = torch.linspace(model.start_time(), 0.01, 4, dtype=torch.float64)
    found = [
        bounds.continuous_bound(model, x, sd.NoiseStream(0, range(len(x))), draws=4, cell=cell),
        bounds.discrete_bound(model, x, times, sd.NoiseStream(0, range(len(x))), cell=cell),
    ]
    assert {bound.total.dtype for bound in found} == {torch.float32}


@pytest.mark.parametrize("divergence", ["hutchinson", "exact"])
@pytest.mark.parametrize("sde_name", SDES.names())
def test_likelihood(sde_name: str, divergence: str) -> None:
    found = sd.log_likelihood(
        denoiser(SDES.build(sde_name)), state((2, 1, 2, 2)), divergence=divergence, probes=2, check=1
    )
    assert found.log_prob.shape == (2,)
    assert found.log_prob.dtype == torch.float32


def test_a_run_samples_with_its_way(trained: Path) -> None:
    """What ``sample --trajectory`` does, the pictures of the way included."""
    run = load_run(trained, load_config(trained), DEVICE)
    drawn = draw(run, samplers.build("probability_flow"), 3, batch_size=2, seed=0, quiet=True, trajectory=True)
    assert drawn.strip is not None
    assert len(drawn.strip.states) > 1
    assert {values.device.type for values in vars(drawn.strip).values()} == {"cpu"}


def test_a_data_set_is_scored(tmp_path: Path) -> None:
    """What ``likelihood`` does: the pilot that chooses a tolerance, the solve, both bounds, their sums on the host."""
    options = ScoringOptions(bound_draws=4, bound_steps=3)
    examples = Examples(torch.zeros(3, *SHAPE[1:], dtype=torch.uint8), {})
    scorer = Scorer(denoiser(), GreyLevels(256), examples, options, 0, DEVICE)
    assert scorer.score(tmp_path / "scores.npz", {}, 2, lambda n: None).ode.shape == (1, 3)


def test_uniforms_of_fewer_digits_are_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 they are those of float64 to its digits, and stay within (0, 1) where rounding would reach 1."""
    on_host = sd.NoiseStream(7, range(512)).uniform(9)
    monkeypatch.setattr(ops, "WITHOUT_FLOAT64", ("cpu",))
    found = sd.NoiseStream(7, range(512)).uniform(9)
    assert found.dtype == torch.float32
    assert (found.double() - on_host).abs().max() <= 2.0**-23  # half a step of 2⁻²³ and of 2⁻⁵³, and rounding
    for bits in (-1, 0):  # all of them set, and none
        monkeypatch.setattr(
            Words, "__call__", lambda self, made, bits=bits: torch.full((1, 512, 2), bits, dtype=torch.int32)
        )
        extreme = sd.NoiseStream(7, range(512)).uniform(1)
        assert ((extreme > 0.0) & (extreme < 1.0)).all()
