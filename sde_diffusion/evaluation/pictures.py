"""Pictures of samples: grids, strips of the reverse process, scatter plots of vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sde_diffusion.evaluation.figures import figure
from sde_diffusion.files import write_atomically

SMALLEST = 32
"""Pictures below this side are enlarged by whole factors, so that 8×8 digits can be looked at."""


def is_picture(shape: Sequence[int]) -> bool:
    """Whether samples of this shape are grey or colour pictures (1 or 3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def _tile(x: Tensor, columns: int) -> Tensor:
    """Lay pictures (N, C, H, W) in [−1, 1] out in rows: uint8 (H', W', 3)."""
    from torchvision.utils import make_grid

    x = x.detach().float().cpu().clamp(-1.0, 1.0).add(1.0).div(2.0)
    factor = math.ceil(SMALLEST / x.shape[-1])
    x = x.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)
    grid: Tensor = make_grid(x, nrow=columns, padding=2, pad_value=1.0)
    return grid.mul(255.0).round().to(torch.uint8).permute(1, 2, 0)


def save_grid(path: Path, x: Tensor, columns: int | None = None) -> None:
    """Write pictures (N, C, H, W) in [−1, 1] as one PNG; vectors (N, D) as a scatter plot of two components."""
    if is_picture(x.shape[1:]):
        from PIL import Image

        tiles = _tile(x, columns or math.ceil(math.sqrt(len(x))))
        write_atomically(path, lambda p: Image.fromarray(tiles.numpy()).save(p))
    else:
        _save_scatter(path, [x], ["samples"])


def save_strip(path: Path, states: Sequence[Tensor], times: Sequence[float]) -> None:
    """Write the reverse process, one column a time: pictures of the states, or scatter plots of vectors.

    Args:
        states: (N, *) each, scaled to about unit size.
        times: their times.
    """
    if is_picture(states[0].shape[1:]):
        stacked = torch.stack(list(states), dim=1)  # (N, times, …): a row a sample
        save_grid(path, stacked.flatten(0, 1), columns=len(states))
    else:
        _save_scatter(path, states, [f"t = {t:.3g}" for t in times])


def _save_scatter(path: Path, clouds: Sequence[Tensor], titles: Sequence[str]) -> None:
    with figure(path, (3.0 * len(clouds), 3.2), len(clouds), dpi=110) as axes:
        for axis, cloud, title in zip(axes, clouds, titles, strict=True):
            flat = cloud.detach().reshape(len(cloud), -1).cpu()
            axis.scatter(flat[:, 0], flat[:, min(1, flat.shape[1] - 1)], s=3, alpha=0.5, linewidths=0)
            axis.set_title(title, fontsize=9)
            axis.set_aspect("equal", adjustable="datalim")
