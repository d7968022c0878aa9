"""Training: moving average, rates, checkpoints, exact resume, the end of one whose loss is not finite."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sde_diffusion as sd
from sde_diffusion.commands.main import main
from sde_diffusion.records import read_record
from sde_diffusion.training import checkpoints
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.loop import TrainingOptions, make_optimizer
from sde_diffusion.training.muon import COEFFICIENTS, Muon, orthogonalise

SMALL = [
    "--quiet",
    "--device=cpu",
    "--config.network.unet.channels=8",
    "--config.network.unet.num_blocks=1",
    "--config.network.unet.dropout=0.1",
    "--config.training.batch_size=8",
    "--config.training.log_every=2",
    "--config.training.warmup_steps=2",
    "--config.training.schedule=constant",
]


def train(workdir: Path, *flags: str) -> int:
    return main(["train", f"--workdir={workdir}", *SMALL, *flags])


def draw_of(workdir: Path, name: str, end: str = ".npz") -> Path:
    """The file of the one draw of a run that is called so, the hash at the end of its name apart."""
    [path] = (workdir / "samples").glob(f"{name}_{'[0-9a-f]' * 8}{end}")
    return path


def test_ema_is_the_weighted_sum() -> None:
    """After updates with weights d_n = min(decay, (1 + n)/(10 + n)) the average is the recursion's closed sum."""
    net = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(net.weight, 1.0)
    ema = EMA(net, decay=0.5)
    expected = 1.0
    for n in range(20):
        torch.nn.init.constant_(net.weight, float(n))
        ema.update(net)
        d = min(0.5, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * n
    assert float(ema.network.weight) == pytest.approx(expected, rel=1e-6)
    assert not ema.network.weight.requires_grad


def test_ema_copies_what_is_no_weight() -> None:
    """The statistics of a batch norm are those of the network in training, not of its start, nor averages of them."""
    net = torch.nn.BatchNorm1d(2)
    ema = EMA(net, decay=0.9)
    for n in range(3):
        net(torch.full((4, 2), float(n)) + torch.arange(4.0)[:, None])
        ema.update(net)
    assert float(net.running_mean[0]) != 0.0
    for name, buffer in net.named_buffers():
        assert torch.equal(dict(ema.network.named_buffers())[name], buffer), name


def test_learning_rate() -> None:
    options = TrainingOptions(num_steps=100, warmup_steps=10, learning_rate=1.0, schedule="cosine")
    assert options.rate(0) == pytest.approx(0.1)
    assert options.rate(50) == pytest.approx(0.5)
    assert options.rate(100) == pytest.approx(0.0)
    assert TrainingOptions(warmup_steps=0, schedule="constant", learning_rate=0.3).rate(7) == 0.3


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 40, 24), (1, 16, 16)])
def test_orthogonalisation_is_the_quintic_of_the_singular_values(shape: tuple[int, ...]) -> None:
    """U φ⁵(S/‖S‖) Vᵀ with φ(s) = as + bs³ + cs⁵, by the decomposition; to what float64 and five iterations leave."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    a, b, c = COEFFICIENTS
    s = s / s.norm(dim=-1, keepdim=True)
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    found = orthogonalise(matrices)
    assert torch.allclose(found, u * s[:, None] @ vh, rtol=0.0, atol=1e-12 * a**5)
    assert torch.allclose(found, orthogonalise(1000.0 * matrices), rtol=0.0, atol=1e-12 * a**5)
    assert torch.equal(orthogonalise(torch.zeros_like(matrices)), torch.zeros_like(matrices))


def test_the_quintic_is_near_one_for_all_but_the_smallest_singular_values() -> None:
    s = torch.linspace(0.01, 1.0, 10_000, dtype=torch.float64)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    assert 0.67 < float(s.min()) < float(s.max()) < 1.14


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_moves_matrices_by_orthogonal_steps_and_the_rest_as_adamw(layout: torch.memory_format) -> None:
    """One step of rate r: W loses r · 0.2 √max(rows, columns) · orth(g), all else what AdamW takes."""
    torch.manual_seed(0)
    first = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3), torch.nn.GroupNorm(4, 32), torch.nn.Conv2d(32, 1, 3))
    first = first.to(memory_format=layout)
    second = copy.deepcopy(first)
    options = {"learning_rate": 0.01, "beta2": 0.99, "weight_decay": 0.1}
    for name, net in (("muon", first), ("adamw", second)):
        net(torch.ones(2, 16, 7, 7) + torch.arange(7.0)).square().sum().backward()
        before, grad = net[0].weight.detach().clone(), net[0].weight.grad.clone()
        make_optimizer(net, TrainingOptions(optimizer=name, **options)).step()  # type: ignore[arg-type]
        if name == "muon":
            step = 0.2 * 144**0.5 * orthogonalise(grad.reshape(1, 32, 144)).view(before.shape)
            assert torch.allclose(net[0].weight, before * (1 - 0.01 * 0.1) - 0.01 * step, rtol=0.0, atol=1e-6)
    others = [k for k in first.state_dict() if k != "0.weight"]
    assert all(torch.equal(first.state_dict()[k], second.state_dict()[k]) for k in others)


def test_muon_looks_ahead() -> None:
    """Nesterov's momentum: a second step is along 0.05 g₂ + 0.95 m₂, m₂ = 0.05 g₂ + 0.95 · 0.05 g₁."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 16, 24, generator=generator)
    p = torch.nn.Parameter(torch.zeros(16, 24))
    optimizer = Muon([p], lr=0.01, weight_decay=0.0)
    for grad in (first, second):
        before, p.grad = p.detach().clone(), grad.clone()
        optimizer.step()
    momentum = 0.05 * second + 0.95 * 0.05 * first
    ahead = orthogonalise((0.05 * second + 0.95 * momentum)[None])[0]
    torch.testing.assert_close(before - p.detach(), 0.01 * 0.2 * 24**0.5 * ahead, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_training_equals_uninterrupted_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    """Weights, averages and moments of 6 steps in one go and of 3 + 3 steps, with dropout."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    flags = [f"--config.training.optimizer={optimizer}", "--config.training.checkpoint_every=3"]
    assert train(whole, "--config.training.num_steps=6", *flags) == 0
    assert train(parts, "--config.training.num_steps=3", *flags) == 0
    assert train(parts, "--config.training.num_steps=6", *flags) == 0
    assert [p.name for p in checkpoints.existing(whole)] == ["step_00000003", "step_00000006"]
    for name in ("network", "ema", "optimizer"):
        a, b = (load_file(w / "checkpoints" / "step_00000006" / f"{name}.safetensors") for w in (whole, parts))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    steps = [json.loads(line)["step"] for line in (parts / "train.jsonl").read_text().splitlines()]
    assert steps == [2, 3, 4, 6]
    assert list((parts / "tensorboard").iterdir())


def test_a_killed_run_loses_only_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    """Leftovers of a write that was cut off are ignored, log lines past the checkpoint dropped, a torn one too."""
    assert train(tmp_path, "--config.training.num_steps=4", "--config.training.checkpoint_every=2") == 0
    (tmp_path / "checkpoints" / ".torn").mkdir()
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write('{"step": 9, "loss": 1.0, "learning_rate": 1.0}\n{"step": 10, "lo')
    assert train(tmp_path, "--config.training.num_steps=6", "--config.training.checkpoint_every=2") == 0
    steps = [json.loads(line)["step"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    assert [p.name for p in checkpoints.existing(tmp_path)] == ["step_00000004", "step_00000006"]


def test_provenance_is_with_every_artefact(tmp_path: Path) -> None:
    assert train(tmp_path, "--config.training.num_steps=2", "--seed=4") == 0
    assert main(["sample", f"--workdir={tmp_path}", "--steps=2", "--num_samples=3", "--quiet", "--device=cpu"]) == 0
    saved = json.loads((tmp_path / "config.json").read_text())
    state = json.loads((tmp_path / "checkpoints" / "step_00000002" / "state.json").read_text())
    import numpy as np

    arrays = np.load(draw_of(tmp_path, "ddim_2_n3_seed4"))
    sampled = read_record(draw_of(tmp_path, "ddim_2_n3_seed4", ".json"))
    for facts in (saved["provenance"], state["provenance"], sampled):
        assert facts["version"] == sd.__version__
        assert facts["seed"] == 4
        assert "cores" in facts["machine"]
    assert saved["config"]["training"]["num_steps"] == 2
    assert sampled["nfe"] == 2
    assert "DDIM" in sampled["sampler"]
    assert arrays["x"].shape == (3, 1, 8, 8)


def test_the_loss_falls(tmp_path: Path) -> None:
    """400 steps of a small dense network on two moons: from 1, which is what 0 predicts, to below 0.6."""
    flags = [
        "--config.data.name=two_moons",
        "--config.network.name=mlp",
        "--config.denoiser.prediction=eps",
        "--config.training.num_steps=400",
    ]
    flags += [
        "--config.objective.denoising.weighting.name=simple",
        "--config.training.learning_rate=3e-3",
        "--config.training.batch_size=128",
    ]
    assert main(["train", f"--workdir={tmp_path}", "--quiet", "--device=cpu", *flags]) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.6 < losses[0]
    sample = ["sample", f"--workdir={tmp_path}", "--quiet", "--device=cpu", "--trajectory", "--num_samples=100"]
    assert main(sample) == 0
    assert draw_of(tmp_path, "ddim_50_n100_seed0", "_trajectory.png").stat().st_size > 1000


@pytest.mark.parametrize("sde", ["vp", "subvp", "ve", "cosine", "ddpm"])
def test_every_sde_trains_from_flags(tmp_path: Path, sde: str) -> None:
    flags = [f"--config.sde.name={sde}", "--config.training.num_steps=2", "--config.denoiser.sigma_data=0.5"]
    if sde == "ddpm":
        flags += ["--config.objective.denoising.times.name=discrete", "--config.denoiser.noise_label.name=discrete"]
    assert train(tmp_path, *flags, "--config.training.flip=True", "--config.training.dequantise=True") == 0
    assert main(["sample", f"--workdir={tmp_path}", "--steps=2", "--num_samples=2", "--quiet", "--device=cpu"]) == 0


def test_non_finite_loss_names_the_step_and_keeps_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "--config.training.num_steps=2") == 0
    before = (tmp_path / "checkpoints" / "step_00000002" / "network.safetensors").read_bytes()
    capsys.readouterr()
    # An enormous rate makes the weights, then the loss, infinite.
    flags = ["--config.training.learning_rate=1e30", "--override"]
    assert train(tmp_path, "--config.training.num_steps=40", *flags) == 2
    said, *_, error = capsys.readouterr().err.splitlines()
    assert "learning_rate=1e+30 (stored 0.005)" in said
    assert "loss or gradient is not finite at step" in error
    assert "step_00000002" in error
    assert (tmp_path / "checkpoints" / "step_00000002" / "network.safetensors").read_bytes() == before
    assert [p.name for p in checkpoints.existing(tmp_path)] == ["step_00000002"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_steps", 0),
        ("batch_size", 0),
        ("keep", 0),
        ("learning_rate", 0.0),
        ("ema_decay", 1.5),
        ("optimizer", "adam"),
        ("schedule", "linear"),
        ("grad_clip", -1.0),
        ("max_skipped", -1),
        ("warmup_steps", -1),
        ("beta2", math.nan),
    ],
)
def test_bad_options(name: str, value: object) -> None:
    with pytest.raises(sd.InputError, match=f"{name}="):
        TrainingOptions(**{name: value})  # type: ignore[arg-type]
