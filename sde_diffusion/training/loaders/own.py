"""Our own workdirs: the newest checkpoint of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sde_diffusion.errors import InputError
from sde_diffusion.files import read_json
from sde_diffusion.training import checkpoints
from sde_diffusion.training.loaders.base import LOADERS, Loader, Pretrained


@LOADERS.register("workdir")
class Workdir(Loader):
    """A workdir of sde-diffusion train."""

    def recognises(self, path: Path) -> bool:
        return bool(checkpoints.existing(path))

    def load(self, path: Path, config: dict[str, Any] | None) -> Pretrained:
        saved = read_json(path / "config.json")
        if not isinstance(saved, dict) or not {"config", "data"} <= saved.keys():
            raise InputError(f"{path / 'config.json'}: expected the configuration of a run, with keys config and data")
        folder = checkpoints.newest(path)
        averaged, raw, step = checkpoints.weights(folder)
        values = saved["config"]
        values["data"] = {**values.get("data", {}), **saved["data"]}
        facts = {"format": "sde-diffusion", "path": str(folder), "sha256": checkpoints.digest(folder)}
        return Pretrained(values, averaged, raw, step, facts)
