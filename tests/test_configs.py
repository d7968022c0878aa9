"""Every experiment file builds its parts, and changes only what it means to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sde_diffusion import config as configuration
from sde_diffusion.commands.flags import config_file

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").rglob("*.py"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


CHAINS = {"vp": "ddpm"}
PARAMETERS = {
    "vp/cifar10_ddpm": 35_218_947,
    "vp/cifar10_ddpmpp": 61_804_419,
    "vp/cifar10_ddpmpp_deep": 106_632_579,
    "vp/cifar10_ncsnpp": 62_693_251,
    "vp/cifar10_ncsnpp_deep": 107_521_411,
    "subvp/cifar10_ddpm": 35_218_947,
    "subvp/cifar10_ddpmpp": 61_804_419,
    "subvp/cifar10_ddpmpp_deep": 106_632_579,
    "subvp/cifar10_ncsnpp": 62_693_251,
    "subvp/cifar10_ncsnpp_deep": 107_521_411,
    "ve/cifar10_ddpm": 35_218_947,
    "ve/cifar10_ncsnpp": 62_758_787,
    "ve/cifar10_ncsnpp_deep": 107_586_947,
}
"""Trained parameters of the papers' networks, counted in their authors' code; Fourier features add 128 frozen ones."""


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_builds(path: Path) -> None:
    config = config_file(str(path))
    with torch.device("meta"):
        network = configuration.build_network(config)
    denoiser = configuration.build_denoiser(config, network)
    loss = configuration.build_loss(config)
    configuration.build_sampler(config)
    options = configuration.build_training(config)
    assert config.sde.name in (path.parent.name, "vp", CHAINS.get(path.parent.name))
    assert configuration.differences(config, configuration.default_config())
    if config.data.name != "cifar10":
        return
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name_of(path)]
    assert sum(b.numel() for b in network.buffers()) == (128 if config.network.ncsnpp.embedding == "fourier" else 0)
    assert (options.batch_size, options.learning_rate, options.warmup_steps) == (128, 2e-4, 5000)
    assert options.ema_decay == (0.999 if path.parent.name == "ve" else 0.9999)
    assert options.rate(options.num_steps - 1) == 2e-4
    if config.loss.times.name == "discrete":  # trained at times, and labels, that it will be asked for
        t, _ = loss.times(denoiser.sde, (torch.arange(1000).double() + 0.5) / 1000)
        torch.testing.assert_close(denoiser.round_t(t), t)
        label = denoiser.noise_label(denoiser.sde.at(t))
        torch.testing.assert_close(label, label.round(), atol=1e-9, rtol=0.0)
        assert 0 <= label.min() < 1.5
        assert 997.5 < label.max() <= 999


def test_every_network_of_the_papers_is_counted() -> None:
    assert {name for name in map(name_of, CONFIGS) if "cifar10" in name} == PARAMETERS.keys()


def test_fashion_network_is_small_enough_for_a_cpu() -> None:
    path = next(p for p in CONFIGS if p.stem == "fashion_mnist")
    network = configuration.build_network(config_file(str(path)))
    assert 0.5e6 < sum(p.numel() for p in network.parameters()) < 1.0e6
