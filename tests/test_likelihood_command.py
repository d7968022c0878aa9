"""``sde-diffusion likelihood``: whole splits, resuming, comparisons, given pictures, failures, bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import sde_diffusion as sd
from sde_diffusion import likelihood as mathematics
from sde_diffusion.codecs import Identity
from sde_diffusion.codecs.grey_levels import to_uint8
from sde_diffusion.commands.main import main
from sde_diffusion.data import DATASETS, Examples
from sde_diffusion.evaluation.bits import separation, summary
from sde_diffusion.evaluation.scoring import NAMES, Scorer, ScoringOptions
from sde_diffusion.evaluation.sweep import read_rows
from tests.test_commands import refused, trained

__all__ = ["trained"]
CHEAP = ("--quiet", "--device=cpu", "--bound_draws=4", "--bound_steps=3", "--tolerance=1e-2", "--batch_size=3")


def score(workdir: Path, *flags: str) -> int:
    return main(["likelihood", f"--workdir={workdir}", *CHEAP, *flags])


def values(workdir: Path, stem: str = "likelihood") -> dict[str, np.ndarray]:
    with np.load(workdir / f"{stem}.npz") as content:
        fields = ("ode", "nfe", "continuous", "discrete")
        return {"done": content["done"], **{field: content[NAMES[field]] for field in fields}}


def test_scores_every_image_in_order_whatever_the_batch(trained: Path) -> None:
    found = []
    for batch_size in (3, 7, 64):
        (trained / "likelihood.npz").unlink(missing_ok=True)
        assert score(trained, "--num_images=7", f"--batch_size={batch_size}") == 0
        found.append(values(trained))
    for other in found:
        assert int(other["done"]) == 7
        assert other["ode"].shape == (1, 7)
        for name in ("ode", "continuous", "discrete"):
            assert np.isfinite(other[name]).all()
            np.testing.assert_allclose(other[name], found[0][name], rtol=1e-3)  # float32, another order of sums
    result = json.loads((trained / "likelihood.json").read_text())
    assert set(result["bits_per_dim"]) == {"ode", "continuous", "discrete"}
    assert set(result["budget"]) == {"probes", "solver", "prior", "truncation", "dequantisation"}
    assert result["provenance"]["num_examples"] == 7
    assert len(result["provenance"]["checkpoint"]) == 64
    assert result["nfe"]["max"] >= result["nfe"]["mean"] > 0
    mean = result["bits_per_dim"]["ode"]["mean"]
    assert mean == pytest.approx(-float(found[-1]["ode"].mean()) / (64 * math.log(2)), rel=1e-9)
    assert (trained / "likelihood.png").read_bytes()[:4] == b"\x89PNG"


def test_resumes_after_a_kill(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (trained / "likelihood.npz").unlink(missing_ok=True)
    assert score(trained, "--num_images=7") == 0
    whole = values(trained)
    (trained / "likelihood.npz").unlink()

    original, calls = Scorer.likelihood, []

    def killed(self: Scorer, first: int, *rest: Any, **options: Any) -> Any:
        if first >= 6:
            raise KeyboardInterrupt
        return original(self, first, *rest, **options)

    def seen(self: Scorer, first: int, *rest: Any, **options: Any) -> Any:
        calls.append(first)
        return original(self, first, *rest, **options)

    monkeypatch.setattr(Scorer, "likelihood", killed)
    assert score(trained, "--num_images=7") == 130
    assert int(values(trained)["done"]) == 6
    monkeypatch.setattr(Scorer, "likelihood", seen)
    assert score(trained, "--num_images=7") == 0
    assert calls == [6]  # neither the finished images nor the pilot again
    for name, expected in values(trained).items():
        np.testing.assert_array_equal(expected, whole[name])
    calls.clear()
    assert score(trained, "--num_images=7") == 0
    assert calls == []


def test_other_settings_do_not_overwrite(trained: Path) -> None:
    (trained / "likelihood.npz").unlink(missing_ok=True)
    assert score(trained, "--num_images=3") == 0
    first = values(trained)
    assert score(trained, "--num_images=4", "--probes=3", "--dequantisations=2") == 0
    assert values(trained)["ode"].shape == (2, 4)
    result = json.loads((trained / "likelihood.json").read_text())
    assert result["budget"]["probes"] > 0.0
    assert result["budget"]["dequantisation"] > 0.0
    assert "ode, importance-weighted" not in result["bits_per_dim"]  # not with the noise of probes
    kept = list(trained.glob("likelihood_????????.npz"))
    assert any(np.array_equal(values(trained, path.stem)["ode"], first["ode"]) for path in kept)


def test_exact_divergence_and_importance_weights(trained: Path) -> None:
    assert score(trained, "--num_images=1", "--divergence=exact", "--dequantisations=2") == 0
    result = json.loads((trained / "likelihood.json").read_text())
    bits = result["bits_per_dim"]
    assert bits["ode, importance-weighted"]["mean"] < bits["ode"]["mean"]
    assert result["budget"]["probes"] == 0.0


def test_automatic_tolerance(trained: Path) -> None:
    assert score(trained, "--num_images=2", "--tolerance=auto") == 0
    result = json.loads((trained / "likelihood.json").read_text())
    assert result["tolerance"] in mathematics.TOLERANCES
    assert result["pilot"]["sufficient"]


def test_against_resizes_and_separates(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    for i in range(8):
        noise = generator.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    folder = (f"--config.data.image_folder.root={tmp_path}", "--config.data.image_folder.channels=1")
    split = ("--split=train", "--num_images=5", "--config.data.image_folder.test_fraction=0.3")
    arguments = [flag for flag in CHEAP if flag != "--quiet"]
    assert main(["likelihood", f"--workdir={trained}", *arguments, "--against=image_folder", *folder, *split]) == 0
    text = capsys.readouterr().out
    assert "AUROC of log-likelihood, digits above image_folder" in text
    assert "Nalisnick" in text
    found = json.loads((trained / "likelihood_image_folder.json").read_text())["separation"]
    inside, outside = values(trained)["ode"][0], values(trained, "likelihood_image_folder")["ode"][0]
    assert found["auroc"] == pytest.approx(separation(inside, outside).auroc)
    assert "images of another shape" not in text


def test_area_under_the_curve_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(0.7, 1.0, 300).round(1), generator.normal(0.0, 1.0, 200).round(1)  # with ties
    labels = np.r_[np.ones(300), np.zeros(200)]
    found = separation(np.r_[a, np.nan], b)
    assert found.auroc == pytest.approx(roc_auc_score(labels, np.r_[a, b]), abs=1e-12)
    again = [separation(generator.choice(a, 300), generator.choice(b, 200)).auroc for _ in range(400)]
    assert found.std_error == pytest.approx(float(np.std(again)), rel=0.15)  # 400 repetitions: 3.5 % standard error


def test_given_pictures(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = DATASETS.build("digits")
    for i, k in enumerate(digits.test[:2]):
        Image.fromarray(to_uint8(k[0], 17).numpy()).save(tmp_path / f"{i}.png")
    files = [f"--image={tmp_path}/{i}.png" for i in range(2)]
    assert main(["likelihood", f"--workdir={trained}", *CHEAP, *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rsplit("/", 1)[-1] for line in lines[-3:-1]] == ["0.png", "1.png"]
    (trained / "likelihood.npz").unlink(missing_ok=True)
    assert score(trained, "--num_images=2") == 0
    np.testing.assert_allclose(values(trained, "likelihood_pictures")["ode"], values(trained)["ode"], rtol=1e-6)

    Image.fromarray(np.zeros((9, 8), dtype=np.uint8)).save(tmp_path / "size.png")
    assert "8×8 pixels" in refused(capsys, "likelihood", f"--workdir={trained}", f"--image={tmp_path}/size.png")
    Image.fromarray(np.eye(8, dtype=np.uint8)[..., None] * np.array([9, 0, 0], dtype=np.uint8)).save(tmp_path / "c.png")
    assert "grey" in refused(capsys, "likelihood", f"--workdir={trained}", f"--image={tmp_path}/c.png")
    assert "there is no such file" in refused(
        capsys, "likelihood", f"--workdir={trained}", f"--image={tmp_path}/none.png"
    )
    assert "--against" in refused(capsys, "likelihood", f"--workdir={trained}", *files, "--against=digits")


def test_failed_solves_are_counted(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = mathematics.log_likelihood

    def failing(denoiser: Any, x: torch.Tensor, **options: Any) -> Any:
        steps = 1 if options["first_index"] == 3 else 1000
        return original(denoiser, x, **options, max_steps=steps)

    (trained / "likelihood.npz").unlink(missing_ok=True)
    monkeypatch.setattr(mathematics, "log_likelihood", failing)
    assert score(trained, "--num_images=7") == 1
    text = capsys.readouterr().out
    assert "3 examples have no likelihood" in text
    assert "example 3: it needs more steps than max_steps" in text
    found = values(trained)
    assert np.isnan(found["ode"][0]).tolist() == [False] * 3 + [True] * 3 + [False]
    assert np.isfinite(found["discrete"]).all()
    result = json.loads((trained / "likelihood.json").read_text())
    assert math.isfinite(result["bits_per_dim"]["ode"]["mean"])
    assert set(result["failed"]) == {"3", "4", "5"}


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--tolerance=0", "tolerance=0.0"),
        ("--tolerance=fast", "tolerance=nan"),
        ("--probes=0", "probes=0"),
        ("--probe_law=uniform", "rademacher, gaussian"),
        ("--divergence=skilling", "hutchinson, exact"),
        ("--dequantisations=0", "dequantisations=0"),
        ("--t_min=-1", "t_min=-1"),
        ("--t_min=1.0", "t_min=1.0"),
        ("--bound_draws=5", "an even number"),
        ("--bound_steps=0", "bound_steps=0"),
        ("--bound_grid=cosine", "cosine"),
        ("--variance=learned", "variance='learned'"),
        ("--num_images=-1", "num_samples=-1"),
        ("--batch_size=0", "batch_size=0"),
        ("--split=validation", "validation"),
        ("--against=cifar11", "cifar11"),
        ("--against=mixture", "expected data of shape (1, 8, 8) of 17 grey levels"),
    ],
)
def test_bad_input(trained: Path, capsys: pytest.CaptureFixture[str], flag: str, words: str) -> None:
    arguments = [f for f in CHEAP if f.partition("=")[0] != flag.partition("=")[0]]
    assert words in refused(capsys, "likelihood", f"--workdir={trained}", *arguments, "--num_images=2", flag)


def test_broken_score_file_is_named(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trained / "likelihood.npz"
    path.write_bytes(b"PK\x03\x04 torn")
    assert str(path) in refused(capsys, "likelihood", f"--workdir={trained}", *CHEAP, "--num_images=2")
    path.unlink()


def test_bound_of_ddpm_visits_every_training_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of discrete time with N = 40: terms at all indices, labels whole numbers, the flow from index 0 on."""
    chain = ("--config=configs/digits.py:ddpm", "--config.sde.ddpm.num_train_steps=40", "--config.training.num_steps=2")
    told = ("denoiser.noise_label", "objective.denoising.times")
    discrete = [f"--config.{name}.discrete.num_train_steps=40" for name in told]
    monkeypatch.chdir(Path(__file__).parents[1])
    assert main(["train", f"--workdir={tmp_path}", "--quiet", "--device=cpu", *chain, *discrete]) == 0
    flags = ("--num_images=2", "--bound_grid=indices", "--bound_steps=40", f"--t_min={1 / 40}", "--variance=beta")
    arguments = [flag for flag in CHEAP if not flag.startswith("--bound_steps")]
    assert main(["likelihood", f"--workdir={tmp_path}", *arguments, *flags]) == 0
    result = json.loads((tmp_path / "likelihood.json").read_text())
    assert len(result["curves"]["discrete"][0]) == 39
    assert set(result["parts"]["discrete"]) == {"prior", "diffusion", "reconstruction"}
    assert np.isfinite(values(tmp_path)["discrete"]).all()


def test_vectors_too(tmp_path: Path) -> None:
    toy = ("--config.data.name=mixture", "--config.network.name=mlp", "--config.training.num_steps=2")
    assert main(["train", f"--workdir={tmp_path}", "--quiet", "--device=cpu", *toy]) == 0
    assert score(tmp_path, "--num_images=4", "--divergence=exact") == 0
    assert np.isfinite(values(tmp_path)["ode"]).all()


def test_numbers_of_a_law_are_its_entropy(tmp_path: Path) -> None:
    """Exact score: the ODE gives the entropy, both bounds lie below it, the curve's area is the diffusion part."""
    law = sd.Gaussian([0.2, -0.1], [[0.3, 0.1], [0.1, 0.2]])
    torch.manual_seed(0)
    x = law.sample(400).float()
    options = ScoringOptions(divergence="exact", tolerance=1e-6, bound_steps=60)
    scorer = Scorer(law.denoiser(sd.VPSDE()), Identity(), Examples(x), options, 0, torch.device("cpu"))
    scores = scorer.score(tmp_path / "a.npz", {}, 64, lambda n: None)
    result = summary(scores, (2,), False, options)
    exact = law.log_prob(x.double()).numpy()
    np.testing.assert_allclose(scores.ode[0], exact, atol=1e-2)  # the prior
    for name in ("continuous", "discrete"):
        gap = exact - getattr(scores, name)
        assert gap.mean() > -4.0 * gap.std() / 20.0
        log_snr, density, _ = np.array(result["curves"][name])
        edges = np.abs(np.diff(log_snr)).mean()
        assert (density * edges).sum() == pytest.approx(result["parts"][name]["diffusion"], rel=0.02)
    assert result["log_p_nats"]["ode"]["mean"] == pytest.approx(exact.mean(), abs=1e-2)
    assert result["log_p_nats_per_dim"]["ode"]["mean"] == pytest.approx(result["log_p_nats"]["ode"]["mean"] / 2)


def test_scores_are_not_those_of_other_data_or_of_another_model(tmp_path: Path) -> None:
    """The test data corrected, or the SDE changed by a flag: scored anew, the old numbers kept under another name."""
    generator = np.random.default_rng(0)
    data, run = tmp_path / "data.npz", tmp_path / "run"
    train, test = generator.normal(size=(50, 2)), generator.normal(size=(6, 2))
    np.savez(data, train=train, test=test)
    toy = ["--config.data.name=npz", f"--config.data.root={data}", "--config.training.num_steps=2"]
    assert main(["train", f"--workdir={run}", "--quiet", "--device=cpu", *toy]) == 0
    assert score(run) == 0
    first = values(run)["ode"]
    assert score(run) == 0
    np.testing.assert_array_equal(values(run)["ode"], first)
    np.savez(data, train=train, test=test + 1.0)
    assert score(run) == 0
    other = values(run)["ode"]
    assert not np.allclose(other, first, atol=1e-3)
    assert score(run, "--config.sde.vp.beta_max=10") == 0
    changed = values(run)["ode"]
    assert not np.allclose(changed, other, atol=1e-3)
    assert json.loads((run / "likelihood.json").read_text())["provenance"]["model"] == {"sde.vp.beta_max": 10.0}
    assert len(list(run.glob("likelihood_????????.npz"))) == 2


def test_quiet_hides_progress_and_no_result(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(trained) == 0
    shown = capsys.readouterr()
    assert "bits/dim" in shown.out
    assert "wrote likelihood.json" in shown.out
    assert shown.err == ""


def test_rows_of_a_sweep_are_not_those_of_another_model(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sweep = ["benchmark", f"--workdir={trained}", "--samplers=ddim", "--steps=2", "--num_samples=70", "--quiet"]
    assert main(sweep) == 0
    assert main([*sweep, "--config.sde.vp.beta_max=10"]) == 0
    assert main([*sweep, "--config.sde.vp.beta_max=10"]) == 0
    rows = read_rows(trained / "benchmark.jsonl")
    assert [row["options"].get("config.sde.vp.beta_max") for row in rows] == [None, 10.0]
    assert rows[0]["metrics"] != rows[1]["metrics"]
