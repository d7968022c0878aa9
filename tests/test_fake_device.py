"""Ground truth 17: every sampler runs on an accelerator, shown without one.

What lies on the device is fake here (it has a shape, a dtype and a device, but no numbers), while the host stays real:
a scheme may compute on its clock, its grid and its coefficients and look at them, but whoever looks at a state fails.

- A CPU tensor that meets a device tensor in one operation, unless it is 0-dimensional, fails as on the device.
- ``.item()``, ``float(x)``, ``if x:`` and ``x.nonzero()`` of a device tensor raise: each would stop the host until the
  device has finished. So does ``x.cpu()``.
- The deliberate reads of the library all go through ``ops.host_bool``; the tests replace that one function.

On a real card ``tests/test_cuda.py`` holds the same, and the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import samplers
import samplers.base
import sde_diffusion as sd
from sde_diffusion import ops
from sde_diffusion.denoisers import PREDICTIONS
from sde_diffusion.guidance import ClassifierFree, DynamicThreshold, StaticThreshold
from sde_diffusion.labels import NOISE_LABELS
from sde_diffusion.networks.execution import execute
from sde_diffusion.sdes import SDES
from tests.dpmpp_2m import DPMSolverPP2M

SHAPE = (4, 1, 8, 8)


class CopyToHost(Exception):
    """A device tensor was copied to the host."""


class RealHost(TorchDispatchMode):
    """Keeps CPU computations real under a FakeTensorMode, which would make them fake too, and counts copies.

    Without it a grid of times or the clock of an SDE solver could not be read on the host, where they belong.
    """

    def __init__(self) -> None:
        super().__init__()
        self.uploads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        on_device = any(isinstance(a, FakeTensor) and a.device.type != "cpu" for a in leaves)
        to_device = any(isinstance(a, torch.device) and a.type != "cpu" for a in leaves)
        if not on_device and not to_device:
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        if on_device and any(isinstance(a, Tensor) and a.device.type == "cpu" for a in tree_leaves(out)):
            raise CopyToHost(str(func))
        self.uploads += not on_device and any(isinstance(a, Tensor) for a in leaves)
        return out


class Net(nn.Module):
    """A convolution that is told the time; ``look`` may do with the input what it likes."""

    def __init__(self, look: Callable[[Tensor], object] = lambda x: None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)
        self.look = look

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.look(x)
        out: Tensor = self.conv(torch.cat([x, label.sin()[:, None, None, None].expand_as(x)], dim=1))
        return out


class Host:
    """Stands in for ``ops.host_bool``: nothing is non-finite, and an adaptive solver is done at its third look."""

    def __init__(self) -> None:
        self.reads = 0

    def finite(self, flag: Tensor) -> bool:
        self.reads += 1
        return False

    def done(self, flag: Tensor) -> bool:
        self.reads += 1
        return self.reads >= 3


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(ops, "host_bool", host.done)  # as the ODE solver calls it
    monkeypatch.setattr(samplers.base, "host_bool", host.finite)  # as samplers ask for non-finite states
    return host


@pytest.fixture
def fake_cuda() -> Iterator[RealHost]:
    with FakeTensorMode(allow_non_fake_inputs=True), RealHost() as mode, torch.no_grad():
        yield mode


def network(look: Callable[[Tensor], object] = lambda x: None) -> Net:
    with torch.device("cuda"):
        return Net(look)


def on_device(name: str) -> samplers.Sampler:
    options = samplers.config(name)
    sampler = samplers.build(name, **({"num_steps": 4} if "num_steps" in options else {}))
    if sampler.host_bound:
        pytest.skip(f"{name} computes on the host by its nature")
    return sampler


@pytest.mark.parametrize("name", samplers.names())
@pytest.mark.parametrize("sde_name", SDES.names())
@pytest.mark.usefixtures("host")
def test_every_sampler_stays_on_the_device(sde_name: str, name: str, fake_cuda: RealHost) -> None:
    sampler = on_device(name)
    result = sampler.draw(sd.Denoiser(network(), SDES.build(sde_name)), SHAPE)
    assert isinstance(result.x, FakeTensor)
    assert result.x.device.type == "cuda"
    assert result.x.dtype == torch.float32  # float64 times have not promoted the state
    assert result.x.shape == SHAPE


OPTIONS = [
    *({"name": "torchsde", "method": m} for m in ("euler", "milstein", "heun", "midpoint")),
    {"name": "pc", "step_rule": "batch_norms"},
    {"name": "pc", "predictor": "ancestral", "corrector_steps": 2},
    {"name": "ddim", "eta": 1.0},
    {"name": "ancestral", "variance": "beta"},
    {"name": "probability_flow", "method": "bosh3"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(map(str, o.values())))
@pytest.mark.usefixtures("host", "fake_cuda")
def test_options_stay_on_the_device_too(options: dict[str, Any]) -> None:
    sampler = samplers.build(**options)
    assert sampler.draw(sd.Denoiser(network(), sd.VPSDE()), SHAPE).x.device.type == "cuda"


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("noise_label", NOISE_LABELS.names())
@pytest.mark.usefixtures("host", "fake_cuda")
def test_every_prediction_and_noise_label_stays_on_the_device(prediction: str, noise_label: str) -> None:
    denoiser = sd.Denoiser(network(), sd.VPSDE(), prediction, noise_label, sigma_data=0.5)
    for name in ("ancestral", "heun", "probability_flow"):
        assert samplers.build(name).draw(denoiser, SHAPE).x.device.type == "cuda"


WRAPPERS: dict[str, Callable[[sd.Denoiser], sd.AbstractDenoiser]] = {
    "static": lambda d: StaticThreshold(d, 0.5),
    "dynamic": lambda d: DynamicThreshold(d, keep_eps=True),
    "another clock": lambda d: d.under(sd.FlowSDE()),
    "classifier-free": lambda d: ClassifierFree(d, 3.0, interval=(0.1, 10.0)),
}


@pytest.mark.usefixtures("host", "fake_cuda")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", samplers.names())
def test_wrappers_stay_on_the_device(name: str, wrapper: str) -> None:
    x = on_device(name).draw(WRAPPERS[wrapper](sd.Denoiser(network(), sd.VPSDE())), SHAPE).x
    assert (x.device.type, x.dtype) == ("cuda", torch.float32)


@pytest.mark.parametrize("num_steps", [3, 12])
def test_a_sampler_and_a_path_from_outside_stay_on_the_device(num_steps: int, host: Host, fake_cuda: RealHost) -> None:
    """One read, whatever the number of steps."""
    denoiser = sd.Denoiser(network(), sd.VPSDE())
    assert DPMSolverPP2M(num_steps=num_steps).draw(denoiser, SHAPE).x.device.type == "cuda"
    assert host.reads == 1
    x = torch.zeros(SHAPE, device="cuda")
    path = sd.BrownianPath(0, range(SHAPE[0]))
    assert samplers.build("pc", num_steps=num_steps).sample(denoiser, x, path).x.device.type == "cuda"
    assert host.reads == 2


@pytest.mark.usefixtures("host", "fake_cuda")
@pytest.mark.filterwarnings("ignore:User provided device_type")
@pytest.mark.parametrize("name", ["ancestral", "heun", "probability_flow"])
def test_another_precision_stays_on_the_device_too(name: str) -> None:
    denoiser = sd.Denoiser(execute(network(), "bfloat16"), sd.VPSDE())
    x = samplers.build(name).draw(denoiser, SHAPE).x
    assert (x.device.type, x.dtype) == ("cuda", torch.float32)


@pytest.mark.parametrize("name", [n for n in samplers.names() if "num_steps" in samplers.config(n)])
def test_reads_and_uploads_do_not_grow_with_the_steps(name: str, host: Host, fake_cuda: RealHost) -> None:
    """One read at the end, and what is copied to the device (the keys of the noise) is copied before the loop."""
    counts = []
    for num_steps in (3, 12):
        host.reads = fake_cuda.uploads = 0
        samplers.build(name, num_steps=num_steps).draw(sd.Denoiser(network(), sd.VPSDE()), SHAPE)
        counts.append((host.reads, fake_cuda.uploads))
    assert counts[0] == counts[1]
    assert counts[0][0] == 1


def test_adaptive_solver_reads_once_a_step(host: Host, fake_cuda: RealHost) -> None:
    samplers.build("probability_flow").draw(sd.Denoiser(network(), sd.VPSDE()), SHAPE)
    assert host.reads == 3 + 1  # three attempts, then the final state


HIDDEN_READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: 1 if x.sum() > 0 else 0,
    "tolist": lambda x: x.flatten()[0].tolist(),
    "cpu": lambda x: x.cpu(),
    "isfinite": lambda x: bool(torch.isfinite(x).all()),
}


@pytest.mark.parametrize("kind", HIDDEN_READS)
@pytest.mark.usefixtures("host", "fake_cuda")
def test_a_hidden_read_is_caught(kind: str) -> None:
    """The harness works: a network that looks at its input does not pass."""
    denoiser = sd.Denoiser(network(HIDDEN_READS[kind]), sd.VPSDE())
    with pytest.raises((DataDependentOutputException, CopyToHost)):
        samplers.build("ddim", num_steps=3).draw(denoiser, SHAPE)


@pytest.mark.usefixtures("host", "fake_cuda")
def test_a_mix_of_devices_is_caught() -> None:
    on_cpu = torch.ones(SHAPE)
    denoiser = sd.Denoiser(network(lambda x: x + on_cpu), sd.VPSDE())
    with pytest.raises(RuntimeError, match=r"[Dd]evice"):
        samplers.build("ddim", num_steps=3).draw(denoiser, SHAPE)


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("name", ["ddim", "probability_flow", "torchsde"])
def test_the_deliberate_reads_are_caught_unless_replaced(name: str) -> None:
    """Nothing but the replaced function reads: without the replacement the same run fails."""
    with pytest.raises(DataDependentOutputException):
        samplers.build(name).draw(sd.Denoiser(network(), sd.VPSDE()), SHAPE)
