"""Trained weights, whoever trained them: recognised, read, and made a denoiser or a configuration of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ml_collections import ConfigDict

from sde_diffusion import config as configuration
from sde_diffusion.commands.config_files import config_file
from sde_diffusion.denoisers import Denoiser
from sde_diffusion.errors import InputError, require
from sde_diffusion.stored_config import complete, merge, modern
from sde_diffusion.training import shipped
from sde_diffusion.training.loaders import LOADERS, Pretrained
from sde_diffusion.training.restore import fill


@dataclass(frozen=True)
class Source:
    """What was read.

    Attributes:
        pretrained: the weights.
        config: a whole configuration of ours.
        about: what a run stores of its data: shape and grey levels, and where it was one of ours, codec and names.
        given: the path or name by which it was asked for.
    """

    pretrained: Pretrained
    config: ConfigDict
    about: dict[str, Any]
    given: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.about["shape"])

    def network(self, averaged: bool = True) -> torch.nn.Module:
        """Build the network with its weights.

        Args:
            averaged: the averaged weights, or else those in training where there are any.

        Raises:
            InputError: if the weights do not fit.
        """
        network = configuration.build_network(self.config, self.shape)
        raw = self.pretrained.weights if self.pretrained.raw is None else self.pretrained.raw
        weights = self.pretrained.weights if averaged else raw
        fill(network, weights, Path(str(self.pretrained.source.get("path", "weights"))))
        return network


def read_source(path: Path, config: ConfigDict, describes: bool) -> Source:
    """Read a file or folder with the loader that recognises it.

    Args:
        config: where the rest of the configuration comes from.
        describes: whether ``config`` also says what the network is, for a source that does not.

    Raises:
        InputError: if no loader recognises it, it does not fit, or its data are of another shape than ``config.data``.
    """
    given_path = str(path)
    if not path.exists() and str(path) in shipped.names():
        path = shipped.folder(str(path))
    known = f"an existing file or folder, or one of the package's runs: {', '.join(shipped.names())}"
    require(path.exists(), "source", str(path), known)
    loader = next((found for found in map(LOADERS.build, LOADERS) if found.recognises(path)), None)
    if loader is None:
        known = ", ".join(f"{name} ({(LOADERS[name].__doc__ or '').splitlines()[0].rstrip('.')})" for name in LOADERS)
        raise InputError(f"source={str(path)!r}: no loader recognises it; there are {known}")
    given = config.to_dict()
    if describes:
        shape, levels = configuration.data_shape(config)
        given["data"].update(shape=shape, levels=levels)
    pretrained = loader.load(path, given if describes else None)

    values = modern({key: value for key, value in pretrained.config.items() if key != "data"})
    data = dict(pretrained.config["data"])
    stored = ("shape", "levels", "codec", "conditions", "class_names", "columns")
    about = {key: data.pop(key) for key in stored if key in data}
    about["shape"] = list(about["shape"])
    shape = tuple(about["shape"])
    resolved = complete(config)
    merge(resolved, values, path)
    if resolved.data == configuration.default_config().data:  # nobody has chosen other data
        merge(resolved, {"data": data}, path)
        if configuration.known_shape(resolved) != shape and "name" not in data:
            resolved.data.name = "image_folder"
            resolved.data.image_folder.channels = shape[0]
            resolved.data.image_folder.image_size = shape[1] if shape[1] == shape[2] else shape[1:]
    configuration.require_data_shape(resolved, shape)
    return Source(pretrained, resolved, about, given_path)


def load_pretrained(
    path: str | Path,
    *,
    config: ConfigDict | str | Path | None = None,
    averaged: bool = True,
    device: torch.device | str = "cpu",
) -> Denoiser:
    """Return a denoiser with trained weights, ready to be sampled.

    What goes with sampling is not in it but in the configuration that the commands read: for "fashion_mnist" ``heun``
    has ``t_min=0.08``, for a folder of diffusers whose scheduler bounds x₀ there is a ``denoiser.thresholding``, which
    here is one of :mod:`sde_diffusion.guidance` around the denoiser.

    Args:
        path: a checkpoint of score_sde_pytorch or of guided diffusion, a folder of diffusers, a state dict of one of
            our networks, a workdir of ours, or the name of a run that comes with the package, "fashion_mnist".
        config: a configuration, or a file with one such as ``configs/cifar10.py:ve-ncsnpp``, that describes the
            network, for a checkpoint that has no description with it.
        averaged: take the averaged weights; else those in training.
        device: where to put the network.

    Raises:
        InputError: if it cannot be read, does not fit or would run code; names the key or the option.
    """
    base = config if isinstance(config, ConfigDict) else config_file(str(config) if config else "")
    source = read_source(Path(path), base, describes=config is not None)
    network = source.network(averaged).to(device).eval().requires_grad_(False)
    return configuration.build_denoiser(source.config, network)
