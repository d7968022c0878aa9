"""Conditions: from data through training to samples and likelihoods, against laws known for each class."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import samplers
import sde_diffusion as sd
from sde_diffusion.codecs import GreyLevels, Identity
from sde_diffusion.codecs.grey_levels import to_uint8
from sde_diffusion.commands.main import main
from sde_diffusion.data import DATASETS, Dataset, Examples
from sde_diffusion.evaluation.bits import separation
from sde_diffusion.evaluation.extractors import DigitsExtractor
from sde_diffusion.evaluation.scoring import NAMES, Scorer, ScoringOptions
from sde_diffusion.evaluation.sweep import read_rows
from sde_diffusion.noise import NoiseStream
from sde_diffusion.records import read_record
from sde_diffusion.runs.batches import TrainingBatches
from sde_diffusion.runs.conditions import class_numbers, conditions_of_examples
from sde_diffusion.runs.sweep import SweepOptions
from sde_diffusion.training.loop import TrainingOptions
from tests.test_training import draw_of

MEANS = torch.tensor([[-2.0, 0.0], [1.0, 0.5], [0.0, 3.0]], dtype=torch.float64)
STD = (0.5, 0.3, 0.8)
SDE = sd.VPSDE()


class OfClass(nn.Module):
    """The exact ε of N(mean, std²) of the class that it is told; class 3 stands for the standard normal law."""

    conditions, num_classes, null_class = ("classes",), 3, True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.cat([MEANS, torch.zeros(1, 2, dtype=torch.float64)]))
        self.register_buffer("std", torch.tensor([*STD, 1.0], dtype=torch.float64))

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        y = torch.full((len(x),), 3) if classes is None else classes
        level = SDE.at(SDE.time_of_log_snr(-8.0 * label.double()))  # the default label is −λ/8
        alpha, sigma = level.like(x.double()).alpha, level.like(x.double()).sigma
        mean, variance = self.mean[y], self.std[y][:, None] ** 2  # type: ignore[index]
        return (sigma * (x - alpha * mean) / (alpha**2 * variance + sigma**2)).to(x.dtype)


def denoiser() -> sd.Denoiser:
    return sd.Denoiser(OfClass(), SDE)


def of_class(y: int) -> sd.Gaussian:
    return sd.Gaussian(MEANS[y], torch.eye(2, dtype=torch.float64) * STD[y] ** 2)


@pytest.mark.parametrize("name", ["heun", "ancestral", "probability_flow", "pc"])
def test_samples_are_of_the_class_asked_for(name: str) -> None:
    """A batch of mixed classes: each class's moments, within 5 standard errors of 1,000 and the scheme's own error."""
    y = torch.arange(3000) % 3
    options = {} if name == "probability_flow" else {"num_steps": 100}
    x = samplers.build(name, **options).draw(denoiser(), (3000, 2), seed=1, classes=y).x.double()
    for c in range(3):
        own = x[y == c]
        assert float((own.mean(dim=0) - MEANS[c]).abs().max()) < 5.0 * STD[c] / math.sqrt(1000) + 0.02
        # pc's corrector, of step (0.16 σ)², has a law of its own at the end: within 3 % here
        assert float((own.std(dim=0) / STD[c] - 1.0).abs().max()) < 5.0 / math.sqrt(2000) + 0.03


def test_a_sample_does_not_depend_on_the_classes_of_its_batch() -> None:
    draw = samplers.build("ancestral", num_steps=10).draw
    y = torch.tensor([0, 1, 2, 1])
    together = draw(denoiser(), (4, 2), seed=3, classes=y).x
    for i in range(4):
        alone = draw(denoiser(), (1, 2), seed=3, first_index=i, classes=y[i : i + 1]).x
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=0.0)
    torch.testing.assert_close(draw(denoiser(), (4, 2), classes=2).x, draw(denoiser(), (4, 2), classes=[2] * 4).x)
    unconditional = draw(denoiser(), (4, 2), seed=3).x
    torch.testing.assert_close(draw(denoiser(), (4, 2), seed=3, classes=None).x, unconditional)


def test_likelihood_and_bounds_given_a_class() -> None:
    """log p(x | class) in closed form for each of mixed classes; the bounds lie below it but for their error."""
    y = torch.arange(24) % 3
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([of_class(int(c)).sample(1, generator=generator) for c in y])
    exact = torch.cat([of_class(int(c)).log_prob(x[i : i + 1]) for i, c in enumerate(y)])
    options: dict[str, Any] = {"divergence": "exact", "rtol": 1e-7, "atol": 1e-7}
    found = sd.log_likelihood(denoiser(), x, classes=y, check=5, **options)
    prior = math.sqrt(2.0 * max(float(of_class(c).prior_kl(SDE)) for c in range(3)))
    torch.testing.assert_close(found.log_prob, exact, atol=5.0 * prior + 1e-3, rtol=0.0)
    assert abs(found.budget.solver[0]) < 1e-4  # the first five were solved again, given their own classes
    unconditional = sd.log_likelihood(denoiser(), x, **options).log_prob
    normal = -0.5 * (x.square().sum(dim=1) + 2.0 * math.log(2.0 * math.pi))
    torch.testing.assert_close(unconditional, normal, atol=5e-3, rtol=0.0)

    noise = NoiseStream(0, range(24))
    bound = sd.continuous_bound(denoiser(), x, noise, draws=512, classes=y)
    slack = -bound.total - exact
    assert float(slack.mean()) < 4.0 * float(slack.std()) / math.sqrt(24)
    times = torch.linspace(1.0, 1e-3, 400, dtype=torch.float64)
    discrete = sd.discrete_bound(denoiser(), x, times, NoiseStream(1, range(24)), classes=y)
    slack = -discrete.total - exact
    assert float(slack.mean()) < 4.0 * float(slack.std()) / math.sqrt(24)


def test_scores_of_a_file_are_given_their_labels(tmp_path: Path) -> None:
    """The scorer hands each batch its own labels, whatever the size of the batches."""
    y = torch.arange(10) % 3
    x = torch.cat([of_class(int(c)).sample(1, generator=torch.Generator().manual_seed(int(c))) for c in y]).float()
    exact = torch.cat([of_class(int(c)).log_prob(x[i : i + 1].double()) for i, c in enumerate(y)])
    options = ScoringOptions(divergence="exact", tolerance=1e-6, bound_draws=2, bound_steps=3)
    examples = Examples(x, {"classes": y})
    for size in (3, 10):
        scorer = Scorer(denoiser(), Identity(), examples, options, 0, torch.device("cpu"))
        scores = scorer.score(tmp_path / f"{size}.npz", {}, size, lambda n: None)
        np.testing.assert_allclose(scores.ode[0], exact, atol=2e-2)


def digits(n: int = 640) -> Dataset:
    whole = DATASETS.build("digits")
    labels = whole.conditions["classes"]
    return Dataset("few", whole.train[:n], whole.test[:90], 17, {"classes": (labels[0][:n], labels[1][:90])})


def test_labels_stay_with_their_pictures_and_are_left_out_as_often_as_asked() -> None:
    data, size = digits(), 64
    options = TrainingOptions(batch_size=size, label_dropout=0.25)
    batch = TrainingBatches(data, GreyLevels(17), options, 0, ("classes",))
    dropped = seen = 0
    of_picture = {k.numpy().tobytes(): int(y) for k, y in zip(data.train, data.conditions["classes"][0], strict=True)}
    for step in range(60):
        noise = NoiseStream(5, range(step * size, (step + 1) * size))
        examples, _ = batch(step, noise)
        y = examples.conditions["classes"]
        k = GreyLevels(17).decode(examples.x)
        for picture, label in zip(k, y.tolist(), strict=True):
            assert label in (10, of_picture[picture.numpy().tobytes()])
        dropped += int((y == 10).sum())
        seen += len(y)
    assert abs(dropped / seen - 0.25) < 5.0 * math.sqrt(0.25 * 0.75 / seen)


def test_pictures_do_not_depend_on_whether_labels_are_read() -> None:
    data, options = digits(), TrainingOptions(batch_size=16, flip=True)
    plain, told = (TrainingBatches(data, GreyLevels(17), options, 0, names) for names in ((), ("classes",)))
    (one, _), (two, _) = (b(3, NoiseStream(0, range(48, 64))) for b in (plain, told))
    assert torch.equal(one.x, two.x)
    assert one.conditions == {}


SMALL = [
    *("--quiet", "--device=cpu", "--config.network.unet.channels=8", "--config.network.unet.num_classes=10"),
    *("--config.training.num_steps=3", "--config.training.batch_size=8"),
]


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("conditional") / "run"
    assert main(["train", f"--workdir={run}", *SMALL]) == 0
    return run


def test_a_run_with_classes_does_everything(conditional: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    about = [f"--workdir={conditional}", "--quiet", "--device=cpu"]
    assert read_record(conditional / "config.json")["data"]["class_names"] == [str(c) for c in range(10)]
    assert main(["sample", *about, "--classes=7", "--steps=2", "--num_samples=3"]) == 0
    assert main(["sample", *about, "--classes=0,1,2", "--steps=2", "--num_samples=5", "--batch_size=2"]) == 0
    assert main(["sample", *about, "--steps=2", "--num_samples=2"]) == 0  # no class
    names = ("ddim_2_class7_n3_seed0", "ddim_2_class0-1-2_n5_seed0", "ddim_2_n2_seed0")
    drawn = [np.load(draw_of(conditional, name)) for name in names]
    assert drawn[0]["classes"].tolist() == [7] * 3
    assert drawn[1]["classes"].tolist() == [0, 1, 2, 0, 1]
    assert "classes" not in drawn[2]
    assert drawn[0]["x"].dtype == np.uint8
    few = ["--num_samples=4", "--bound_draws=2", "--bound_steps=2", "--tolerance=0.5"]
    for classes in ((), ("--classes=none",), ("--classes=3",)):
        assert main(["likelihood", *about, *few, *classes]) == 0
    assert read_record(conditional / "likelihood.json")["provenance"]["given"] == "3"
    with np.load(conditional / "likelihood.npz") as content:
        assert set(NAMES.values()) <= set(content)
    sweep = ["benchmark", *about, "--samplers=ddim", "--steps=2", "--num_samples=70"]
    assert main(sweep) == 0
    assert main([*sweep, "--classes=3"]) == 0
    rows = read_rows(conditional / "benchmark.jsonl")
    assert [row["options"]["classes"] for row in rows] == ["data", "3"]
    assert main(["report", f"--workdir={conditional}", "--quiet"]) == 0
    page = (conditional / "report.html").read_text()
    assert "ddim (classes=3)" in page
    assert "4 images, given 3" in page
    run = sd.open_run(conditional, device="cpu")
    labels = run.dataset.conditions["classes"][1][:2]
    x = run.dataset.test[:2]
    quick: dict[str, Any] = {"rtol": 1e-2, "atol": 1e-2, "check": 0}
    options = ScoringOptions(tolerance=0.5, bound_draws=2, bound_steps=2)
    scored = run.score(num_examples=2, classes=labels, options=options, stem="own", quiet=True)
    assert scored.summary["provenance"]["given"] == "a class for each"
    given = run.likelihood(x, classes=labels, **quick).log_prob
    assert given.shape == (2,)
    assert torch.equal(run.sample("ddim", num_steps=2, n=3, classes=7, quiet=True).z, torch.from_numpy(drawn[0]["z"]))


def test_samples_of_a_sweep_have_the_labels_of_the_data_however_sorted(conditional: Path) -> None:
    run = sd.open_run(conditional, device="cpu")
    y = torch.arange(10).repeat_interleave(100)
    sorted_by_class = Examples(torch.zeros(1000, 1, 8, 8, dtype=torch.uint8), {"classes": y})
    few = conditions_of_examples(run, sorted_by_class, samples=200)["classes"]
    counts = torch.bincount(few, minlength=10)  # hypergeometric: 20 ± 3.8 of each
    assert int((counts - 20).abs().max()) < 5 * 3.8
    assert torch.equal(conditions_of_examples(run, sorted_by_class, samples=100)["classes"], few[:100])
    assert torch.equal(conditions_of_examples(run, sorted_by_class)["classes"], y)  # of the examples themselves
    twice = conditions_of_examples(run, sorted_by_class, samples=2000)["classes"]
    assert torch.equal(twice[1000:], twice[:1000])


def test_classes_by_name() -> None:
    names = ("cat", "dog", "frog")
    assert class_numbers("dog", names, 3) == [1]
    assert class_numbers("frog,0", names, 3) == [2, 0]
    assert class_numbers([1, "cat"], names, 3) == [1, 0]
    assert class_numbers("all", names, 3) == [0, 1, 2]
    with pytest.raises(sd.InputError, match=r"classes='frig': expected numbers from 0 to 2, .*did you mean 'frog'"):
        class_numbers("frig", names, 3)
    for bad in ("3", "-1", "1.5", ""):
        with pytest.raises(sd.InputError, match="classes="):
            class_numbers(bad, (), 3)


def test_another_condition_reaches_a_network_of_ones_own(tmp_path: Path) -> None:
    """x ~ N(shift, 0.1²) given a shift that is a number: samples follow it; without it, one line."""

    class Shifted(nn.Module):
        conditions = ("shift",)

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

        def forward(self, x: Tensor, label: Tensor, shift: Tensor) -> Tensor:
            out: Tensor = self.layers(torch.cat([x, label[:, None], shift[:, None].to(x)], dim=1))
            return out

    generator = torch.Generator().manual_seed(0)
    shift = torch.rand(4000, generator=generator) * 4.0 - 2.0
    x = shift[:, None] + 0.1 * torch.randn(4000, 2, generator=generator)
    data = Dataset("shifted", x[:3600], x[3600:], None, {"shift": (shift[:3600], shift[3600:])})
    torch.manual_seed(0)
    how = {"batch_size": 256, "learning_rate": 5e-3, "schedule": "cosine", "ema_decay": 0.99}
    run = sd.fit(Shifted(), data, steps=500, workdir=tmp_path, prediction="v", device="cpu", quiet=True, **how)
    wanted = torch.linspace(-1.5, 1.5, 400)
    drawn = run.sample("heun", num_steps=20, n=400, batch_size=150, conditions={"shift": wanted}, quiet=True)
    error = (drawn.x - wanted[:, None]).mean(dim=1)
    assert float(error.abs().mean()) < 0.2  # √(2/π) · 0.1/√2 = 0.06 exactly, beside 1.2 for samples that ignore it
    with pytest.raises(sd.InputError, match=r"shift: missing, and the network of"):
        run.sample("heun", num_steps=2, n=2, quiet=True)
    with pytest.raises(sd.InputError, match=r"shift shape=\(3,\): expected \(2, \*\), a row for each"):
        run.sample("heun", num_steps=2, n=2, conditions={"shift": wanted[:3]}, quiet=True)
    rows = run.benchmark(["ddim"], steps=[2], options=SweepOptions(num_samples=50), quiet=True)
    assert rows[0]["metric"] == "energy distance"


@pytest.mark.slow
def test_digits_are_of_the_class_asked_for(tmp_path: Path) -> None:
    """As long as the tour trains; an independent classifier (98.4 % on held-out digits) finds at least 90 % of 500."""
    flags = ["--config.network.unet.num_classes=10", "--quiet", "--device=cpu"]
    assert main(["train", f"--workdir={tmp_path}", *flags]) == 0
    about = [f"--workdir={tmp_path}", "--classes=all", "--num_samples=500", "--batch_size=250", "--quiet"]
    assert main(["sample", *about, "--device=cpu"]) == 0
    with np.load(draw_of(tmp_path, "ddim_50_classes10_n500_seed0")) as drawn:
        x, y = torch.from_numpy(drawn["x"]), torch.from_numpy(drawn["classes"])
    (logits,) = DigitsExtractor("digits", ["logits"])(to_uint8(x, 17))
    assert torch.bincount(y).tolist() == [50] * 10
    assert float((logits.argmax(dim=1) == y).float().mean()) >= 0.9
    run = sd.open_run(tmp_path, device="cpu")
    labels = run.dataset.conditions["classes"][1]
    options = ScoringOptions(tolerance=1e-2, bound_draws=2, bound_steps=2)
    own, other = (
        run.score(num_examples=100, classes=y, options=options, stem=stem, quiet=True).scores.ode[0]
        for y, stem in ((labels[:100], "own"), ((labels[:100] + 1) % 10, "other"))
    )
    told_apart = separation(own, other)  # its own class makes a digit more likely
    assert told_apart.auroc > 0.5 + 5.0 * told_apart.std_error
    assert float(np.mean(own > other)) > 0.9
