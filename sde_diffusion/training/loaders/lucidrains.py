"""Checkpoints of denoising-diffusion-pytorch, ``model-N.pt``: known, and refused for the parts of its network.

References:
    github.com/lucidrains/denoising-diffusion-pytorch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sde_diffusion.errors import InputError
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained
from sde_diffusion.training.loaders.tensor_files import outline, states

PARTS = {
    r"\.block1\.proj\.weight$": "residual blocks that normalise after their convolutions",
    r"downs\.\d+\.\d+\.(fn\.)*to_qkv\.weight$": "linear attention on every level",
    r"\.mem_kv$": "learned keys and values beside those of the pixels",
    r"\.norm\.g$|\.to_out\.1\.g$": "a normalisation of each pixel's channels",
}
"""What of its networks is not here, by names of weights."""


def _names(path: Path) -> list[str]:
    found = states(outline(path))
    return [] if found is None else [*found[0]]


@LOADERS.register("lucidrains")
class Lucidrains(Loader):
    """A model-N.pt of denoising-diffusion-pytorch (named, and refused)."""

    def recognises(self, path: Path) -> bool:
        names = _names(path)
        parts = ("init_conv.weight", "final_conv.weight", "mid_block1.block1.proj.weight")
        return all(any(name.endswith(part) for name in names) for part in parts)

    def load(self, path: Path, config: dict[str, Any] | None) -> Pretrained:
        names = _names(path)
        missing = [what for pattern, what in PARTS.items() if any(re.search(pattern, name) for name in names)]
        raise InputError(
            f"{path}: a checkpoint of denoising-diffusion-pytorch, whose network has {', '.join(missing)}: these are "
            "not here; train one of ours on the same data"
        )
