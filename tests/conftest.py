"""Shared by all tests: every registered SDE, times as samplers pass them, what is skipped without a card."""

from __future__ import annotations

import pytest
import torch

from sde_diffusion.sdes import SDE, SDES

torch.set_num_threads(1)  # tensors of a few kilobytes: more threads only wait for each other


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a card that CUDA runs on")


@pytest.fixture(params=SDES.names())
def sde(request: pytest.FixtureRequest) -> SDE:
    return SDES.build(request.param)


def time(value: float) -> torch.Tensor:
    """A time as samplers pass it: 0-dimensional, float64, CPU."""
    return torch.tensor(value, dtype=torch.float64)
