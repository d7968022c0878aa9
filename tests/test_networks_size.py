"""Networks that are too large are refused as they grow: by their options, before memory is taken."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import torch

from sde_diffusion import InputError
from sde_diffusion.config import build_network, default_config
from sde_diffusion.networks import NETWORKS
from sde_diffusion.networks.skeleton import TENSORS, require_size, skeleton

HUGE: list[tuple[str, dict[str, Any]]] = [
    ("mlp", {"width": 10**9}),
    ("mlp", {"width": 10**12}),
    ("mlp", {"width": 4 * 10**30}),
    ("mlp", {"depth": 10**9}),
    ("unet", {"channels": 4 * 10**8}),
    ("unet", {"num_blocks": (10**6,)}),
    ("unet", {"num_classes": 10**15}),
    ("unet", {"shape": (10**12, 8, 8)}),
    ("ncsnpp", {"num_blocks": 10**9, "channel_mults": (1, 2)}),
    ("unet2d", {"waves": 10**12}),
]


@pytest.mark.parametrize(("name", "options"), HUGE)
def test_what_would_not_fit_is_refused_and_takes_no_memory(name: str, options: dict[str, Any]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"make it smaller by its options|below 2\^63"):
        skeleton(name, **{"shape": (3, 8, 8), **options})
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < TENSORS * 20, "at most the objects of the layers, some 10 KiB each, and no numbers"


@pytest.mark.parametrize("name", NETWORKS.names())
def test_a_skeleton_has_the_shapes_of_the_network_and_draws_nothing(name: str) -> None:
    state = torch.get_rng_state()
    bones = skeleton(name, shape=(3, 16, 16)).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(tensor.is_meta for tensor in bones.values())
    flesh = NETWORKS.build(name, shape=(3, 16, 16)).state_dict()
    assert {k: (v.shape, v.dtype) for k, v in bones.items()} == {k: (v.shape, v.dtype) for k, v in flesh.items()}


def test_the_configured_network_is_measured_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory that there is decides: what fits is built, what does not is refused."""
    config = default_config()
    size = sum(tensor.nbytes for tensor in build_network(config, (1, 8, 8)).state_dict().values())
    monkeypatch.setattr("sde_diffusion.memory.available", lambda device="cpu": float(size))
    build_network(config, (1, 8, 8))
    monkeypatch.setattr("sde_diffusion.memory.available", lambda device="cpu": size - 1.0)
    with pytest.raises(InputError, match=r"network.name='unet': expected what fits"):
        build_network(config, (1, 8, 8))


def test_one_that_needs_numbers_to_be_built_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def net(shape: tuple[int, ...]) -> torch.nn.Module:
        return torch.nn.Linear(int(torch.ones(3).sum().item()), 1)

    monkeypatch.setitem(NETWORKS._entries, "of_numbers", net)
    require_size("of_numbers", shape=(2,))
