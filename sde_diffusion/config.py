"""The configuration: one table of defaults, read from the registries, and what is built from it.

Every choice is a name and, beside it, the options of each entry that could be named: ``config.sampler.name = "pc"`` and
``config.sampler.pc.snr = 0.2``. A part that is registered has therefore its flags. A run stores what is chosen of it
(:mod:`sde_diffusion.stored_config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference
from torch import nn

import samplers
from samplers import SAMPLERS, Sampler
from sde_diffusion.codecs import CODECS, Codec, codec_for
from sde_diffusion.codecs.base import AUTO
from sde_diffusion.data import DATASETS, Dataset
from sde_diffusion.data.image_folder import height_and_width
from sde_diffusion.denoisers import AbstractDenoiser, Denoiser
from sde_diffusion.errors import InputError, require, require_int
from sde_diffusion.guidance import GUIDANCE, THRESHOLDS
from sde_diffusion.labels import NOISE_LABELS
from sde_diffusion.networks import NETWORKS
from sde_diffusion.networks.execution import execute, lay_out
from sde_diffusion.networks.skeleton import require_size
from sde_diffusion.objectives import OBJECTIVES, Objective
from sde_diffusion.registry import Registry
from sde_diffusion.sdes import SDE, SDES
from sde_diffusion.training.loop import TrainingOptions

BY_SHAPE = ("unet", "mlp")
"""Networks that "auto" chooses from, by the shape of an example."""


def _choice(registry: Registry[Any], name: str, **extra: Any) -> ConfigDict:
    return ConfigDict({"name": name, **extra, **{entry: registry.config(entry) for entry in registry}})


def _choice_of_composites(registry: Registry[Any], name: str) -> ConfigDict:
    """Return a choice among entries some of whose options are parts, which are choices too."""
    config = _choice(registry, name)
    for entry in registry:
        for option, among in _parts(registry, entry).items():
            del config[entry][option]
            config[entry][option] = _choice(among, registry.config(entry)[option])
    return config


def _parts(registry: Registry[Any], name: str) -> Mapping[str, Registry[Any]]:
    """Return the options of a sampler or an objective that are parts, and where they are chosen from."""
    entry = registry[name]
    return entry.parts if isinstance(entry, type) and issubclass(entry, (Sampler, Objective)) else {}


def default_config() -> ConfigDict:
    """Return the built-in configuration: a small U-Net on scikit-learn's digits."""
    config = ConfigDict()
    config.plugins = ()  # files and modules of one's own, imported first
    config.seed = 0
    config.threads = 1  # CPU threads; 0 leaves PyTorch's choice. Pictures of 8×8 are too small to be shared out.
    config.precision = "auto"  # of the network: "float32", "bfloat16", or bfloat16 where the hardware has it
    config.layout = "auto"  # of its images: "channels_last", "contiguous", or as measured to pay
    config.fused_attention = True  # else plain matrix products: slower, and deterministic on CUDA
    config.compile = False  # the network; pays on long runs
    config.tf32 = False  # CUDA: whether float32 may mean TF32 in matrix products and convolutions
    config.data = _choice(DATASETS, "digits", root="")
    # One number, or height and width: a value of either kind may take its place.
    config.data.image_folder.image_size = FieldReference(config.data.image_folder.image_size, field_type=object)
    config.codec = _choice(CODECS, AUTO)  # between data and model space; auto: grey levels, else standardised
    config.sde = _choice(SDES, "vp")
    config.network = _choice(NETWORKS, AUTO)  # auto: mlp for vectors, unet for all else
    config.network.unet.update(channels=24, channel_mults=(1, 2), num_blocks=(1,), attention=())
    config.denoiser = ConfigDict({"prediction": "v", "sigma_data": 0.0})
    config.denoiser.noise_label = _choice(NOISE_LABELS, "log_snr")
    # In sampling alone, a bound on each predicted x₀; with the samplers named, or all.
    config.denoiser.thresholding = _choice(THRESHOLDS, "none", samplers=())
    config.guidance = _choice(GUIDANCE, "none")  # in sampling alone: what changes each prediction
    config.objective = _choice_of_composites(OBJECTIVES, "denoising")
    # With v-prediction on a VP SDE the mean squared error in v:
    config.objective.denoising.weighting.edm.sigma_data = 1.0
    config.training = ConfigDict(dict(vars(TrainingOptions())))
    config.training.update(num_steps=1400, batch_size=64, learning_rate=5e-3, warmup_steps=50, beta2=0.99)
    config.training.ema_decay = 0.99
    config.sampler = _choice_of_composites(SAMPLERS, "ddim")
    return config


def paper_config() -> ConfigDict:
    """Return what the papers have in common on CIFAR-10: data, loss and training (Song et al. 2021, Appendix H)."""
    config = default_config()
    config.threads = 0
    config.data.name = "cifar10"
    config.codec.grey_levels.dequantise = False
    config.denoiser.prediction = "eps"
    config.denoiser.noise_label.name = "scaled"
    config.objective.denoising.times.name = "uniform"
    config.objective.denoising.weighting.name = "simple"
    config.training = ConfigDict(dict(vars(TrainingOptions())))
    config.training.update(num_steps=1_300_000, warmup_steps=5000, schedule="constant", flip=True)
    config.training.update(log_every=50, checkpoint_every=10_000)
    config.sampler.name = "euler_maruyama"
    config.sampler.euler_maruyama.num_steps = 1000
    return config


get_config = default_config  # what ml_collections looks for in a config file: this file is the default one


def _build(registry: Registry[Any], choice: ConfigDict, **fixed: Any) -> Any:
    return registry.build(choice.name, **{**choice.get(choice.name, ConfigDict()).to_dict(), **fixed})


def build_sde(config: ConfigDict) -> SDE:
    """Build ``config.sde``."""
    sde: SDE = _build(SDES, config.sde)
    return sde


def build_dataset(config: ConfigDict) -> Dataset:
    """Build ``config.data``; ``data.root`` goes to data sets that are read from a place.

    Raises:
        InputError: if ``data.root`` is set for a data set that has none.
    """
    fixed = {}
    if config.data.root:
        DATASETS[config.data.name]
        if "root" not in config.data.get(config.data.name, {}):
            raise InputError(f"data.root={config.data.root!r}: data set {config.data.name!r} is not read from a folder")
        fixed["root"] = config.data.root
    dataset: Dataset = _build(DATASETS, config.data, **fixed)
    return dataset


def known_shape(config: ConfigDict) -> tuple[int, ...] | None:
    """Return the shape of an example of ``config.data`` where its name and options tell it; else None."""
    if config.data.name == "image_folder":
        options = config.data.image_folder
        return options.channels, *height_and_width(options.image_size)
    return {"cifar10": (3, 32, 32), "fashion_mnist": (1, 28, 28)}.get(config.data.name)


def data_shape(config: ConfigDict) -> tuple[tuple[int, ...], int | None]:
    """Return the shape of an example of ``config.data`` and its number of grey levels; reads the data only if it must.

    Raises:
        InputError: if it must, and there are none.
    """
    known = known_shape(config)
    if known is not None:
        return known, 256
    dataset = build_dataset(config)
    return dataset.shape, dataset.levels


def require_data_shape(config: ConfigDict, shape: tuple[int, ...]) -> None:
    """Refuse ``config.data`` if it is known to be of another shape than the network's.

    Raises:
        InputError: names both shapes.
    """
    known = known_shape(config)
    expected = f"data of shape {shape}, as the network was built for, not {known}"
    require(known in (None, shape), "data.name", config.data.name, expected)


def build_codec(config: ConfigDict, dataset: Dataset) -> Codec:
    """Build ``config.codec`` for a data set, on whose training split it is measured."""
    name = config.codec.name
    return codec_for(dataset, name, **config.codec.get(name, ConfigDict()).to_dict())


def network_name(config: ConfigDict, shape: tuple[int, ...]) -> str:
    """Return the name of the network for examples of a shape: the configured one, or that of their rank."""
    name: str = config.network.name
    return name if name != AUTO else "mlp" if len(shape) == 1 else "unet"


def build_network(config: ConfigDict, shape: tuple[int, ...] | None = None) -> nn.Module:
    """Build ``config.network``, convolutions on pictures in channels-last layout.

    Args:
        shape: of one example; by default that of ``config.data``.

    Raises:
        InputError: if they do not fit, before they do.
    """
    shape = shape or data_shape(config)[0]
    name = network_name(config, shape)
    options = {**config.network.get(name, ConfigDict()).to_dict(), "shape": shape}
    require_size(name, **options)
    return lay_out(NETWORKS.build(name, **options), "channels_last")


def execute_network(config: ConfigDict, network: nn.Module, training: bool = False, exact: bool = False) -> nn.Module:
    """Return a network, on its device, as ``config`` wants it run.

    Args:
        training: whether it is to be trained.
        exact: in float32 and not compiled, whatever the configuration says of these.
    """
    precision, compiled = ("float32", False) if exact else (config.precision, config.compile)
    how = {"layout": config.layout, "fused_attention": config.fused_attention}
    return execute(network, precision, compiled, training, **how)


def build_denoiser(config: ConfigDict, network: nn.Module, sde: SDE | None = None) -> Denoiser:
    """Wrap a network as ``config.denoiser`` says, with another SDE than ``config.sde`` if one is given."""
    return Denoiser(
        network,
        sde or build_sde(config),
        prediction=config.denoiser.prediction,
        noise_label=_build(NOISE_LABELS, config.denoiser.noise_label),
        sigma_data=config.denoiser.sigma_data or None,
    )


def wrapping(config: ConfigDict, sampler: str = "") -> dict[str, dict[str, Any]]:
    """Return what a sampler, by its name, draws through: names and options of guidance and thresholding, if chosen."""
    bound = config.denoiser.thresholding
    applies = not bound.samplers or sampler in bound.samplers
    chosen = {"guidance": config.guidance, **({"thresholding": bound} if applies else {})}
    return {
        kind: {"name": choice.name, **choice.get(choice.name, ConfigDict()).to_dict()}
        for kind, choice in chosen.items()
        if choice.name != "none"
    }


def wrap(config: ConfigDict, denoiser: AbstractDenoiser, sampler: str = "") -> AbstractDenoiser:
    """Return what a sampler draws from: a denoiser, the configuration's guidance around it, then the bound on x₀."""
    registries: dict[str, Registry[Any]] = {"guidance": GUIDANCE, "thresholding": THRESHOLDS}
    for kind, options in wrapping(config, sampler).items():
        denoiser = registries[kind].build(**options, denoiser=denoiser)
    return denoiser


def build_objective(config: ConfigDict) -> Objective:
    """Build ``config.objective``."""
    name = config.objective.name
    return OBJECTIVES.build(name, **_options(OBJECTIVES, name, config.objective))


def build_sampler(config: ConfigDict, name: str = "", num_steps: int | None = None, **fixed: Any) -> Sampler:
    """Build ``config.sampler``.

    Args:
        name: another sampler than the configured one.
        num_steps: its number of steps, if given.
        fixed: options that override the configured ones.

    Raises:
        InputError: if ``num_steps`` is given for a sampler that chooses its own steps.
    """
    name = name or config.sampler.name
    if num_steps is not None:
        require_int("steps", num_steps, 1)
        options = samplers.config(name)
        if "num_steps" not in options:
            raise InputError(
                f"steps={num_steps}: sampler {name!r} chooses its own steps; set its tolerances instead, "
                f"--config.sampler.{name}.rtol=1e-4"
            )
        fixed["num_steps"] = num_steps
    return SAMPLERS.build(name, **{**_options(SAMPLERS, name, config.sampler), **fixed})


def _options(registry: Registry[Any], name: str, choice: ConfigDict) -> dict[str, Any]:
    """Return the options of an entry, those that are parts as it takes them."""
    options: dict[str, Any] = choice.get(name, ConfigDict()).to_dict()
    parts = {option: _part(r, options[option]) for option, r in _parts(registry, name).items() if option in options}
    return {**options, **parts}


def _part(registry: Registry[Any], choice: str | dict[str, Any]) -> str | dict[str, Any]:
    """Return a part as what it is a part of takes it: its name, and with it the options that are not their default."""
    if isinstance(choice, str) or choice["name"] not in registry:
        return choice if isinstance(choice, str) else choice["name"]
    default = registry.config(choice["name"])
    changed = {k: v for k, v in choice.get(choice["name"], {}).items() if k not in default or v != default[k]}
    return {"name": choice["name"], **changed} if changed else choice["name"]


def build_training(config: ConfigDict) -> TrainingOptions:
    """Build ``config.training``."""
    return TrainingOptions(**config.training.to_dict())
