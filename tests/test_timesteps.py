"""Time grids: ends, direction, and the spacing that each is named for."""

from __future__ import annotations

import pytest
import torch

import sde_diffusion as sd
from sde_diffusion.sdes import SDE
from sde_diffusion.timesteps import GRIDS


@pytest.mark.parametrize("num_points", [1, 2, 3, 50])
@pytest.mark.parametrize("grid", GRIDS.names())
def test_every_grid_falls_from_the_end_to_t_min(sde: SDE, grid: str, num_points: int) -> None:
    t = GRIDS[grid](sde, num_points, sde.t_min)
    assert t.dtype == torch.float64
    assert t.device.type == "cpu"
    assert len(t) == num_points
    assert float(t[0]) == pytest.approx(sde.T, rel=6e-3 if grid == "indices" else 1e-12)
    if num_points > 1:
        assert (t[1:] < t[:-1]).all()
        assert float(t[-1]) == pytest.approx(max(sde.t_min, 1e-3) if grid == "indices" else sde.t_min, rel=1e-9)


def test_spacing(sde: SDE) -> None:
    rho = {name: torch.exp(-0.5 * sde.log_snr(GRIDS[name](sde, 9, sde.t_min))) for name in ("log_snr", "karras")}
    gaps = {
        "uniform": GRIDS["uniform"](sde, 9, sde.t_min).diff(),
        "quadratic": GRIDS["quadratic"](sde, 9, sde.t_min).sqrt().diff(),
        "log_snr": rho["log_snr"].log().diff(),
        "karras": (rho["karras"] ** (1 / 7)).diff(),
    }
    for gap in gaps.values():
        torch.testing.assert_close(gap, gap[:1].expand(8), rtol=1e-6, atol=1e-12)


def test_indices_are_training_times() -> None:
    chain = sd.DDPMChain.linear(100)
    assert torch.equal(GRIDS["indices"](chain, 100, chain.t_min), torch.arange(100, 0, -1, dtype=torch.float64) / 100)
    with pytest.raises(sd.InputError, match="100 times, not 101"):
        GRIDS["indices"](chain, 101, chain.t_min)
    with pytest.raises(sd.InputError, match="did you mean 'karras'"):
        GRIDS["karas"]
