"""Training a run: from a configuration, or from a network and data that are handed over in Python."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch import Tensor, nn

from sde_diffusion import config as configuration
from sde_diffusion.codecs import CODECS, Codec
from sde_diffusion.codecs.base import AUTO
from sde_diffusion.data import Dataset
from sde_diffusion.data.base import CLASSES
from sde_diffusion.errors import InputError, require
from sde_diffusion.files import provenance
from sde_diffusion.locks import one_writer
from sde_diffusion.noise import stream
from sde_diffusion.registry import hint
from sde_diffusion.runs.batches import TrainingBatches
from sde_diffusion.runs.given import as_dataset, describe_data, describe_sde
from sde_diffusion.runs.open import load_run, pick_device, read_codec
from sde_diffusion.runs.prior import warn_of_prior
from sde_diffusion.runs.resume import require_resumable
from sde_diffusion.runs.run import Run
from sde_diffusion.sde import SDE
from sde_diffusion.stored_config import chosen, merge
from sde_diffusion.terminal import say
from sde_diffusion.training import checkpoints
from sde_diffusion.training.checkpoints import Checkpoint, TrainingState
from sde_diffusion.training.ema import EMA
from sde_diffusion.training.loop import TrainingOptions, losses_of_step, make_optimizer, train
from sde_diffusion.training.restore import fill, restore
from sde_diffusion.training.room import require_room
from sde_diffusion.training.settings import GIVEN, is_run, read_settings

if TYPE_CHECKING:
    from sde_diffusion.pretrained import Source

SOME = 1000
"""Examples whose size is looked at."""


def train_run(
    workdir: Path,
    config: ConfigDict,
    device: torch.device,
    quiet: bool,
    *,
    net: nn.Module | None = None,
    sde: SDE | None = None,
    data: Dataset | None = None,
    init: Source | None = None,
    override: bool = False,
) -> None:
    """Train a run to ``training.num_steps``, from its newest checkpoint if there is one.

    Whoever calls this holds the lock of the workdir's training.

    Args:
        net, sde, data: instead of those that the configuration would build.
        init: whose averaged weights a new run starts from.
        override: go on with a run by other steps than it was begun with.

    Raises:
        InputError: on what cannot be trained, or not as what the workdir holds; it is then as it was.
    """
    options = configuration.build_training(config)
    found = _to_resume(workdir, config, override)
    dataset = configuration.build_dataset(config) if data is None else data
    codec = _codec(workdir, config, dataset)
    config.network.name = _network_name(config, dataset)
    torch.manual_seed(stream(config.seed, "weights"))
    network = (configuration.build_network(config, dataset.shape) if net is None else net).to(device)
    names = _require_conditions(network, dataset, options)
    executed = configuration.execute_network(config, network, training=True)
    denoiser = configuration.build_denoiser(config, executed, sde)
    objective = configuration.build_objective(config)
    configuration.build_sampler(config)  # refuse its options now, not after the training
    batch = TrainingBatches(dataset, codec, options, config.seed, names)

    def losses(n: int) -> Tensor:
        few = TrainingBatches(dataset, codec, replace(options, batch_size=n), config.seed, names)
        return losses_of_step(denoiser, objective, few, n, config.seed, step=0)[0]

    require_room(config.network.name, network, dataset.shape, options.batch_size, None if config.compile else losses)
    warn_of_prior(denoiser.sde, codec.encode(dataset.train[:SOME])[0])
    say(f"{dataset.describe()}; codec {CODECS.name_of(codec)}\n{_described(config, network, names)}", quiet)
    if init is not None and found is None:
        _start_from(init, network, dataset)
        say(f"starting from {init.given}", quiet)
    state = _state(network, options, found)
    if found is not None:
        checkpoints.set_aside(workdir, found.step)
        say(f"resuming from {found.folder}", quiet)
    if state.step >= options.num_steps:
        already = f"{workdir} is trained to step {state.step} already, and left as it is"
        say(f"{already}; raise --config.training.num_steps to go on", quiet)
        return
    facts = provenance(device, seed=config.seed, **_origin(workdir, init))
    settings = {"config": chosen(config), "data": describe_data(dataset, codec), "provenance": facts}
    train(workdir, denoiser, state, objective, batch, options, config.seed, settings, quiet)
    say(f"trained to step {state.step}; checkpoint {checkpoints.newest(workdir)}", quiet)


def _to_resume(workdir: Path, config: ConfigDict, override: bool) -> Checkpoint | None:
    """Return what a training goes on from, if the workdir holds a run, and what is configured is the same."""
    checkpoints.sweep(workdir)
    found = checkpoints.read_to_train(workdir)
    _make_absolute(config.data)
    if is_run(workdir):
        require_resumable(workdir, config, override)
    return found


def _described(config: ConfigDict, network: nn.Module, names: tuple[str, ...]) -> str:
    size, device = sum(p.numel() for p in network.parameters()), next(network.parameters()).device
    told = f", told {', '.join(names)}" if names else ""
    return f"{config.network.name}: {size:,} parameters on {device}{told}"


def _state(network: nn.Module, options: TrainingOptions, found: Checkpoint | None) -> TrainingState:
    """Return what training changes, as it is at first, or as it was at a checkpoint."""
    state = TrainingState(network, EMA(network, options.ema_decay), make_optimizer(network, options))
    if found is not None:
        restore(found, state, options.optimizer)
    return state


def _codec(workdir: Path, config: ConfigDict, dataset: Dataset) -> Codec:
    """Return the codec of a run, or of a new one that which is measured on its data."""
    if is_run(workdir):
        return read_codec(workdir, read_settings(workdir)["data"], config)
    return configuration.build_codec(config, dataset)


def _network_name(config: ConfigDict, dataset: Dataset) -> str:
    """Return the name of the network, which "auto" chooses by the data.

    Raises:
        InputError: if classes were asked of the network that "auto" has not chosen, and none of the one that it has.
    """
    name = configuration.network_name(config, dataset.shape)
    if name != config.network.name and not config.network[name].num_classes:
        for other in configuration.BY_SHAPE:
            count = config.network[other].num_classes
            expected = f"0, for network 'auto' is {name!r} for {dataset.noun}"
            remedy = f"give --config.network.{name}.num_classes={count}, or --config.network={other}"
            require(count == 0, f"network.{other}.num_classes", count, expected, remedy)
    return name


def _make_absolute(data: ConfigDict) -> None:
    """Store where data are as absolute paths, so that the run finds them from any folder."""
    for choice in (data, data.get(data.name, ConfigDict())):
        root = choice.get("root", "")
        if root and Path(root).expanduser().exists():
            choice.root = str(Path(root).expanduser().resolve())


def _require_conditions(network: nn.Module, dataset: Dataset, options: TrainingOptions) -> tuple[str, ...]:
    """Return the names of the conditions that a network is told, all of which the data have.

    Raises:
        InputError: on conditions that the data lack, other numbers of classes, labels that cannot be dropped.
    """
    names: tuple[str, ...] = getattr(network, "conditions", None) or ()
    for name in names:
        known = f"only {', '.join(dataset.conditions)}" if dataset.conditions else "none"
        expected = f"data with the condition {name!r}, which the network is told; these have {known}"
        remedy = "build it with num_classes=0, or take data with labels" if name == CLASSES else "take others"
        require(name in dataset.conditions, "data", dataset.name, expected, remedy)
    count = int(getattr(network, "num_classes", 0))
    if count:
        expected = f"{dataset.num_classes}, the classes of {dataset.name}"
        require(count == dataset.num_classes, "num_classes", count, expected)
        droppable = options.label_dropout == 0.0 or bool(getattr(network, "null_class", False))
        remedy = "give --config.training.label_dropout=0, or --config.network.NAME.null_class=True where it has that"
        expected = "0, for the network cannot be told that there is no class (null_class=False)"
        require(droppable, "training.label_dropout", options.label_dropout, expected, remedy)
    return names


def _origin(workdir: Path, init: Source | None) -> dict[str, Any]:
    """Return what the provenance of a run says of others' weights that it was begun from."""
    if init is not None:
        return {"init": {"given": init.given, **init.pretrained.source}}
    stored = read_settings(workdir).get("provenance", {}) if is_run(workdir) else {}
    return {key: stored[key] for key in ("source", "init") if key in stored}


def _start_from(source: Source, network: nn.Module, dataset: Dataset) -> None:
    """Give a network the averaged weights of another run.

    Raises:
        InputError: naming a parameter that does not fit, or if the classes of the data are others.
    """
    then, now = tuple(source.about.get("class_names") or ()), tuple(dataset.class_names)
    told = bool(getattr(network, "num_classes", 0))
    expected = f"those that {source.given} was trained with, {', '.join(then)}"
    remedy = "take data of the same classes in this order, or a network without classes"
    require(not (told and then and now) or then == now, f"classes of {dataset.name}", ", ".join(now), expected, remedy)
    try:
        fill(network, source.pretrained.weights, Path(source.given))
    except InputError as error:
        if source.shape == dataset.shape:
            raise
        raise InputError(f"{error}; it was trained on data of shape {source.shape}, not {dataset.shape}") from None


def fit(
    net: nn.Module,
    data: Dataset | Tensor | np.ndarray | str,
    *,
    sde: SDE | None = None,
    steps: int = 2000,
    workdir: str | Path | None = None,
    prediction: str = "eps",
    codec: str = AUTO,
    device: str | torch.device = "auto",
    seed: int = 0,
    quiet: bool = False,
    override: bool = False,
    **training: Any,
) -> Run:
    """Train a network on data and return the run, ready to be sampled; goes on from the workdir's newest checkpoint.

    Args:
        net: called as ``net(x, label)`` with x (B, *) and label (B,); returns (B, *). It is trained in place. One that
            is conditioned says so by an attribute ``conditions``, names of what the data set has for each example and
            it takes as keywords, and with classes among them ``num_classes``, and ``null_class=True`` if it takes that
            number for no class.
        data: a :class:`~sde_diffusion.data.Dataset`, examples (N, *) as floats or (N, C, H, W) as uint8, of which a
            tenth are held out, or the name of a data set.
        sde: the forward SDE; by default ``VPSDE()``.
        steps: training steps in all.
        workdir: folder of the run; by default a new temporary one.
        prediction: what the network predicts.
        codec: name of the way from the data to the network's space: "auto", "identity" …
        device: "auto", "cpu", "cuda" or "mps".
        seed: of data order, times and noise.
        quiet: print nothing.
        override: go on with the workdir's run by other steps than it was begun with: another seed, rate, optimiser …;
            ``steps`` may always be raised.
        training: other :class:`~sde_diffusion.training.loop.TrainingOptions`, such as ``batch_size``.

    Raises:
        InputError: on an option out of range, a workdir of another model, or of other steps without ``override``.
    """
    require(isinstance(net, nn.Module), "net", type(net).__name__, "a torch.nn.Module")
    config = configuration.default_config()
    config.seed, config.threads = seed, 0
    config.network.name = GIVEN
    config.denoiser.prediction, config.codec.name = prediction, codec
    config.training = _training({"num_steps": steps, **training})
    if prediction == "eps":
        config.objective.denoising.weighting.name = "simple"
    if sde is not None:
        merge(config, {"sde": describe_sde(sde)}, Path("sde"))
    dataset = None if isinstance(data, str) else as_dataset(data)
    config.data.name = data if isinstance(data, str) else GIVEN
    folder = Path(tempfile.mkdtemp(prefix="sde-diffusion-")) if workdir is None else Path(workdir)
    where = pick_device(device)
    with one_writer(folder, "training"):
        train_run(folder, config, where, quiet, net=net, sde=sde, data=dataset, override=override)
    return load_run(folder, config, where, net=net, sde=sde, data=dataset)


def _training(options: dict[str, Any]) -> ConfigDict:
    """Return ``config.training`` with some options; refuses those that it does not have."""
    known = dict(vars(TrainingOptions()))
    for name, value in options.items():
        if name not in known:
            near = hint(name, list(known))
            raise InputError(f"{name}={value!r}: no such option of training{near} it has: {', '.join(known)}")
    return ConfigDict({**known, **options})
