"""Our own workdirs: the newest checkpoint of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sde_diffusion.training import checkpoints
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained
from sde_diffusion.training.settings import read_settings


@LOADERS.register("workdir")
class Workdir(Loader):
    """A workdir of sde-diffusion train."""

    def recognises(self, path: Path) -> bool:
        return bool(checkpoints.existing(path))

    def load(self, path: Path, config: dict[str, Any] | None) -> Pretrained:
        saved, found = read_settings(path), checkpoints.read(path, "network")
        values = saved["config"]
        values["data"] = {**values.get("data", {}), **saved["data"]}
        facts = {"format": "sde-diffusion", "path": str(found.folder), "sha256": found.digest}
        averaged = found.tensors["ema"]
        return Pretrained(values, averaged, found.tensors.get("network", averaged), found.step, facts)
