"""Opening a run: its configuration, its newest whole checkpoint, its denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from sde_diffusion import config as configuration
from sde_diffusion import plugins as plugin_files
from sde_diffusion.codecs import CODECS, Codec, GreyLevels, Identity, stored_codec
from sde_diffusion.codecs.base import AUTO
from sde_diffusion.data import Dataset
from sde_diffusion.errors import InputError, require
from sde_diffusion.runs.given import as_dataset
from sde_diffusion.runs.run import Run
from sde_diffusion.sde import SDE
from sde_diffusion.stored_config import differences, load_config, value_of
from sde_diffusion.training import checkpoints, shipped
from sde_diffusion.training.restore import fill
from sde_diffusion.training.settings import CONFIG_FILE, GIVEN, read_settings


def pick_device(name: str | torch.device) -> torch.device:
    """Return the device of a name; "auto" is the first of CUDA, MPS and the CPU that is there.

    Raises:
        InputError: if the device is not there.
    """
    if isinstance(name, torch.device):
        return name
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    here = [kind for kind, there in available.items() if there]
    require(name.partition(":")[0] in here, "device", name, f"one of {', '.join(here)} here")
    return torch.device(name)


def load_run(
    workdir: Path,
    config: ConfigDict,
    device: torch.device,
    *,
    net: nn.Module | None = None,
    sde: SDE | None = None,
    data: Dataset | None = None,
) -> Run:
    """Load the newest whole checkpoint of a workdir, averaged weights.

    Args:
        config: of the run, with what a command changes in it.
        net, sde, data: those that the run was given in Python.

    Raises:
        InputError: if there is none, or it does not fit the configuration.
    """
    found = checkpoints.read(workdir)
    about = read_settings(workdir)["data"]
    shape = tuple(about["shape"])
    configuration.require_data_shape(config, shape)
    for name, part in (("net", net), ("sde", sde)):
        stored = config.network.name if name == "net" else config.sde.name
        remedy = f"open it with sd.open_run(path, {name}=…), or register it in a plug-in and train with that"
        require(part is not None or stored != GIVEN, name, GIVEN, f"the {name}, handed over in Python", remedy)
    network = net if net is not None else configuration.build_network(config, shape)
    fill(network, found.tensors["ema"], found.folder)
    network = network.to(device).eval().requires_grad_(False)
    denoiser, float32 = (
        configuration.build_denoiser(config, configuration.execute_network(config, network, exact=exact), sde)
        for exact in (False, True)
    )
    names = {key: tuple(about.get(key, ())) for key in ("class_names", "columns")}
    told = {name: tuple(sizes) for name, sizes in about.get("conditions", {}).items()}
    return Run(
        workdir, config, device, denoiser, float32, shape, about.get("levels"), read_codec(workdir, about, config),
        **names, condition_shapes=told, checkpoint=found.folder, step=found.step, digest=found.digest,
        changed=_changed(workdir, config), _data=data,
    )  # fmt: skip


MODEL = ("sde.", "network.", "denoiser.")
"""Beginnings of the keys that say what a model is."""


def _changed(workdir: Path, config: ConfigDict) -> dict[str, Any]:
    """Return what of the model a configuration has otherwise than the run was trained with, by dotted keys."""
    stored = load_config(workdir, tuple(config.plugins))
    keys = [key for key in differences(stored, config) if key.startswith(MODEL)]
    keys = [key for key in keys if not key.startswith("denoiser.thresholding")]  # which is of sampling
    return {key: value_of(config, key) for key in keys}


def read_codec(workdir: Path, about: dict[str, Any], config: ConfigDict) -> Codec:
    """Return the codec of a run.

    Runs of version 0.1.0 store none: theirs is that of grey levels, or of continuous data the identity.

    Args:
        workdir: of the run.
        about: what the run stores of its data.
        config: of the run, which may ask for no other codec.

    Raises:
        InputError: if it is damaged, of a plug-in that is not loaded, or not the one that is asked for.
    """
    if "codec" in about:
        try:
            codec = stored_codec(about["codec"])
            _require_fit(codec, tuple(about["shape"]), about.get("levels"))
        except InputError as error:
            raise InputError(
                f"{workdir / CONFIG_FILE}: data.codec cannot be used ({error}); restore the file, or if the codec "
                "is of a plug-in load it with --plugins=FILE"
            ) from None
    elif about.get("levels"):
        codec = GreyLevels(about["levels"], **config.codec.grey_levels.to_dict())
    else:
        codec = Identity()
    name = CODECS.name_of(codec)
    expected = f"{name}, with which the run is trained"
    require(config.codec.name in (AUTO, name), "codec.name", config.codec.name, expected, "take another workdir")
    for option, value in config.codec.get(name, ConfigDict()).to_dict().items():
        own = getattr(codec, option)
        expected = f"{own!r}, with which the run is trained"
        require(value == own, f"codec.{name}.{option}", value, expected, "take another workdir")
    return codec


def _require_fit(codec: Codec, shape: tuple[int, ...], levels: int | None) -> None:
    """Refuse a codec that is not one of data of a shape and a number of grey levels."""
    found, expected = codec.decode(torch.zeros(1, *shape)).dtype, torch.uint8 if levels else torch.float32
    require(found == expected, "dtype of what it decodes", found, f"{expected}, as the run's data are")
    if isinstance(codec, GreyLevels):
        expected_levels = f"{levels}, the number of grey levels of the run's data"
        require(codec.levels == levels, "levels", codec.levels, expected_levels)


def open_run(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    plugins: Sequence[str | Path] = (),
    net: nn.Module | None = None,
    sde: SDE | None = None,
    data: Dataset | Tensor | None = None,
) -> Run:
    """Open a run.

    Args:
        path: its workdir, or the name of one that comes with the package, which is unpacked to ``runs/NAME``.
        device: "auto", "cpu", "cuda" or "mps".
        plugins: files and modules of your own, imported first.
        net: the network, for a run whose network was handed over in Python; its weights are filled in.
        sde: the SDE, likewise.
        data: the data, likewise.

    Raises:
        InputError: if there is no run, or it is damaged and has no copy that is whole.
    """
    given = [plugin_files.stored_name(str(name)) for name in plugins]
    plugin_files.load(given)
    workdir = Path(path)
    if not workdir.exists() and str(path) in shipped.names():
        workdir = Path("runs") / str(path)
        shipped.unpack(str(path), workdir)
    config = load_config(workdir, tuple(given))
    dataset = None if data is None else as_dataset(data)
    return load_run(workdir, config, pick_device(device), net=net, sde=sde, data=dataset)
