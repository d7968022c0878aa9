"""Every experiment file builds its parts, and changes only what it means to."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

import sde_diffusion as sd
from sde_diffusion import config as configuration
from sde_diffusion.commands.config_files import config_file
from sde_diffusion.errors import InputError
from sde_diffusion.stored_config import differences

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
VARIANTS = {path: runpy.run_path(str(path)).get("VARIANTS", []) for path in sorted(CONFIGS.rglob("*.py"))}
NAMES = [
    name for path, variants in VARIANTS.items() for name in ([f"{path.name}:{v}" for v in variants] or [path.name])
]
OTHER_SDES = {"vp-ddpm": "ddpm", "vectors": "vp", "series": "vp", "volumes": "vp"}
"""SDEs of variants that do not begin with their name."""
SHAPES = {"vectors": (5,), "series": (2, 64), "volumes": (1, 8, 8, 8)}
"""Of data that everybody brings along."""
PARAMETERS = {
    "vp-ddpm": 35_218_947,
    "vp-ddpmpp": 61_804_419,
    "vp-ddpmpp-deep": 106_632_579,
    "vp-ncsnpp": 62_693_251,
    "vp-ncsnpp-deep": 107_521_411,
    "subvp-ddpm": 35_218_947,
    "subvp-ddpmpp": 61_804_419,
    "subvp-ddpmpp-deep": 106_632_579,
    "subvp-ncsnpp": 62_693_251,
    "subvp-ncsnpp-deep": 107_521_411,
    "ve-ddpm": 35_218_947,
    "ve-ncsnpp": 62_758_787,
    "ve-ncsnpp-deep": 107_586_947,
}
"""Trained parameters of the papers' networks, counted in their authors' code; Fourier features add 128 frozen ones."""


@pytest.mark.parametrize("name", NAMES)
def test_config_builds(name: str) -> None:
    config, variant = config_file(f"{CONFIGS}/{name}"), name.partition(":")[2]
    variant = "ddpm" if name.startswith("guided_diffusion.py") else variant
    with torch.device("meta"):
        network = configuration.build_network(config, SHAPES.get(variant))
    denoiser = configuration.build_denoiser(config, network)
    objective = configuration.build_objective(config)
    configuration.build_sampler(config)
    options = configuration.build_training(config)
    assert config.sde.name == OTHER_SDES.get(variant, variant.partition("-")[0] or "vp")
    assert differences(config, configuration.default_config())
    if config.data.name != "cifar10":
        return
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[variant]
    assert sum(b.numel() for b in network.buffers()) == (128 if config.network.ncsnpp.embedding == "fourier" else 0)
    assert (options.batch_size, options.learning_rate, options.warmup_steps) == (128, 2e-4, 5000)
    assert options.ema_decay == (0.999 if config.sde.name == "ve" else 0.9999)
    assert options.rate(options.num_steps - 1) == 2e-4
    assert isinstance(objective, sd.DenoisingScoreMatching)
    if config.objective.denoising.times.name == "discrete":  # trained at times, and labels, that it will be asked for
        t, _ = objective.times(denoiser.sde, (torch.arange(1000).double() + 0.5) / 1000)
        torch.testing.assert_close(denoiser.round_t(t), t)
        label = denoiser.noise_label(denoiser.sde.at(t))
        torch.testing.assert_close(label, label.round(), atol=1e-9, rtol=0.0)
        assert 0 <= label.min() < 1.5
        assert 997.5 < label.max() <= 999


def test_every_network_of_the_papers_is_counted() -> None:
    assert set(VARIANTS[CONFIGS / "cifar10.py"]) == PARAMETERS.keys()


@pytest.mark.parametrize(
    ("file", "default"), [("cifar10.py", "vp-ddpmpp"), ("digits.py", "ddpm"), ("continuous.py", "vectors")]
)
def test_a_file_without_a_variant_is_its_first_choice(file: str, default: str) -> None:
    plain, chosen = config_file(f"{CONFIGS}/{file}"), config_file(f"{CONFIGS}/{file}:{default}")
    assert differences(plain, chosen) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10.py:ve-ddpmpp", "variant='ve-ddpmpp': expected one of vp-ddpm, vp-ddpmpp, vp-ddpmpp-deep"),
        ("digits.py:", "variant='': expected one of ddpm, flow, subvp, ve"),
        ("continuous.py:images", "variant='images': expected one of vectors, series, volumes"),
        ("fashion_mnist.py:deep", "cannot be read: TypeError: get_config()"),
        ("nowhere.py:deep", "expected an existing Python file with a function get_config()"),
        ("nowhere.py", "FILE.py or FILE.py:VARIANT"),
    ],
)
def test_bad_variants_are_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        config_file(f"{CONFIGS}/{name}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "old", "new"),
    [
        ("config.loss.times.name = 'uniform'", "loss", "objective.denoising"),
        ("config['loss'] = {'times': {'name': 'uniform'}}", "loss", "objective.denoising"),
        ("config.denoiser.conditioning.name = 'scaled'", "denoiser.conditioning", "denoiser.noise_label"),
        ("config.denoiser.update(conditioning={'name': 'scaled'})", "denoiser.conditioning", "denoiser.noise_label"),
    ],
)
def test_a_file_with_an_old_key_is_told_the_new_one(tmp_path: Path, line: str, old: str, new: str) -> None:
    file = tmp_path / "my.py"
    file.write_text(
        "from sde_diffusion.config import default_config\n\n\ndef get_config():\n"
        f"    config = default_config()\n    {line}\n    return config\n"
    )
    with pytest.raises(InputError) as caught:
        config_file(str(file))
    assert str(caught.value) == f"config={str(file)!r}: config.{old} is config.{new} now; write config.{new} for it"


def test_a_drive_letter_is_no_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same spelling on any system: a folder "C:" stands for the drive."""
    (tmp_path / "C:").mkdir()
    (tmp_path / "C:" / "digits.py").write_bytes((CONFIGS / "digits.py").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert config_file("C:/digits.py").sde.name == "ddpm"
    assert config_file("C:/digits.py:subvp").sde.name == "subvp"


def test_fashion_network_is_small_enough_for_a_cpu() -> None:
    network = configuration.build_network(config_file(f"{CONFIGS}/fashion_mnist.py"))
    assert 0.5e6 < sum(p.numel() for p in network.parameters()) < 1.0e6
