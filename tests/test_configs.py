"""Every experiment file builds its parts, and changes only what it means to."""

from __future__ import annotations

from pathlib import Path

import pytest

from sde_diffusion import config as configuration
from sde_diffusion.commands.flags import config_file

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").rglob("*.py"))
SHAPES = {"digits": (1, 8, 8), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_config_builds(path: Path) -> None:
    config = config_file(str(path))
    network = configuration.build_network(config, SHAPES[config.data.name])
    configuration.build_denoiser(config, network)
    configuration.build_loss(config)
    configuration.build_sampler(config)
    configuration.build_training(config)
    assert config.sde.name in (path.parent.name, "vp")
    assert configuration.differences(config, configuration.default_config())


def test_fashion_network_is_small_enough_for_a_cpu() -> None:
    path = next(p for p in CONFIGS if p.stem == "fashion_mnist")
    network = configuration.build_network(config_file(str(path)), (1, 28, 28))
    assert 0.5e6 < sum(p.numel() for p in network.parameters()) < 1.0e6
