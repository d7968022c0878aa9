"""Flags that several commands share, and how a command's flags and its configuration are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from absl import flags
from ml_collections import ConfigDict, config_flags

from sde_diffusion import plugins
from sde_diffusion.codecs.base import AUTO
from sde_diffusion.commands.config_files import config_file
from sde_diffusion.config import BY_SHAPE, default_config
from sde_diffusion.errors import InputError, require, require_int
from sde_diffusion.noise import require_seed
from sde_diffusion.registry import hint
from sde_diffusion.runs.open import load_run, pick_device
from sde_diffusion.runs.run import Run
from sde_diffusion.stored_config import differences, is_choice, load_config, modern_flags
from sde_diffusion.training import shipped
from sde_diffusion.training.settings import is_run

BY_DATA = {"config.network": BY_SHAPE, "config.codec": ("grey_levels", "standardised")}
"""What "auto" chooses from."""
QUIET = "Print results and warnings only: no progress, nothing of what is being done."


def define_run_flags(values: flags.FlagValues, workdir: str | None = None) -> None:
    """Define what every command that computes has."""
    flags.DEFINE_string("workdir", workdir, "Folder of the run.", flag_values=values)
    flags.DEFINE_enum("device", "auto", ["auto", "cpu", "cuda", "mps"], "Where to compute.", flag_values=values)
    flags.DEFINE_integer("seed", None, "Seed of everything random; by default the configuration's.", flag_values=values)
    flags.DEFINE_boolean("quiet", False, QUIET, flag_values=values)


def define_pretrained_flag(values: flags.FlagValues) -> None:
    """Define what commands that read a trained run have."""
    text = f"Take a run that comes with the package ({', '.join(shipped.names())}); --workdir is runs/NAME by default."
    flags.DEFINE_string("pretrained", "", text, flag_values=values)


def define_sampling_flags(values: flags.FlagValues) -> None:
    """Define what commands that draw samples have."""
    flags.DEFINE_string("sampler", "", "Name of the sampler; by default config.sampler.name.", flag_values=values)
    flags.DEFINE_integer("steps", None, "Number of steps; by default the sampler's.", flag_values=values)
    flags.DEFINE_integer("num_samples", 64, "Number of samples.", flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "Samples at a time; does not change them.", flag_values=values)


def parse(
    name: str, summary: str, define: Callable[[flags.FlagValues], None], arguments: Sequence[str]
) -> tuple[flags.FlagValues, list[str]]:
    """Read the flags of a command; returns them, and apart from them those that change the configuration.

    Raises:
        InputError: on an argument that is no flag.
        absl.flags.Error: on an unknown flag or a bad value.
    """
    overrides = [a for a in arguments if a.lstrip("-").startswith("config.")]
    others = [a for a in arguments if a not in overrides]
    for override in overrides:
        require("=" in override, "argument", override, "--config.KEY=VALUE")

    values = flags.FlagValues()
    define(values)
    flags.DEFINE_string(
        "config",
        "",
        "Configuration: FILE.py or FILE.py:VARIANT, which is code and is run, or JSON or YAML, such as a run's "
        "config.json; --config.KEY=VALUE changes a value.",
        flag_values=values,
    )
    flags.DEFINE_list("plugins", [], "Files (.py) and modules of your own, imported first.", flag_values=values)
    flags.DEFINE_boolean("help", False, "Show this help.", short_name="h", flag_values=values)
    rest = values([name, *others])
    _expand(values)
    plugins.load(map(plugins.stored_name, values.plugins))
    if values.help:
        print(f"sde-diffusion {name}: {summary}\n{values.get_help()}\n\nDefault configuration:\n{default_config()}")
        raise SystemExit(0)
    require(len(rest) == 1, "argument", rest[-1], "only flags", "write --flag=value")
    return values, overrides


PATHS = ("workdir", "source", "init", "data", "conditions", "inception_weights", "image", "compare", "config", "out")
"""Flags whose values are paths, in which "~" is a person's home."""


def _expand(values: flags.FlagValues) -> None:
    for flag in PATHS:
        value = values[flag].value if flag in values else None
        if isinstance(value, list):
            values[flag].value = [os.path.expanduser(path) for path in value]
        elif value:
            values[flag].value = os.path.expanduser(value)


def resolve(
    values: flags.FlagValues,
    overrides: Sequence[str],
    base: Callable[[flags.FlagValues], ConfigDict] | None = None,
) -> ConfigDict:
    """Return the configuration of a command, and set what it says of the whole process.

    It is that of the workdir if it has one, else the file given with ``--config``, else the built-in default;
    ``--config.KEY=VALUE`` then changes single values.

    Args:
        base: a command's own way to what flags change, in the place of :func:`base_config`.

    Raises:
        InputError: on an unknown configuration key, a value of the wrong type, a bad file.
    """
    if "pretrained" in values and values.pretrained:
        values.workdir = values.workdir or f"runs/{values.pretrained}"
        shipped.unpack(values.pretrained, Path(values.workdir))
    config = (base or base_config)(values)
    given = _given(config, overrides)
    _require_read(values, config, given)
    _require_chosen(config, given, against=values.against if "against" in values else "")
    try:
        holder = flags.FlagValues()
        arguments = ["", *(f"--{key}={value}" for key, value in given.items())]
        config_flags.DEFINE_config_dict("config", config, flag_values=holder, sys_argv=arguments)
        holder(arguments)
    except (TypeError, ValueError, SyntaxError, AttributeError, KeyError) as error:
        raise InputError(f"--config: {error}") from None
    config = holder.config
    if "seed" in values and values.seed is not None:
        config.seed = values.seed
    require_seed(config.seed)
    require_int("threads", config.threads, 0)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.tf32
    for flag, low in (("num_samples", 1), ("batch_size", 1), ("steps", 1)):
        known = (None, values[flag].default) if flag in values else ()
        if flag in values and values[flag].value not in known and not isinstance(values[flag].value, list):
            require_int(flag, values[flag].value, low)
    return config


def base_config(values: flags.FlagValues) -> ConfigDict:
    """Return what flags change: the configuration of the workdir if it has one, else of ``--config``, or the default.

    Raises:
        InputError: if both are there and differ, or one cannot be read.
    """
    workdir = values.workdir if "workdir" in values else None
    given = tuple(map(plugins.stored_name, values.plugins))
    if workdir and is_run(Path(workdir)):
        config = load_config(Path(workdir), given)
        if values.config:
            given_file = config_file(values.config)
            given_file.plugins = config.plugins  # the run knows more of them: those that the file imports
            changed = differences(config, given_file)
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            require(
                not changed,
                "config",
                values.config,
                f"the configuration that {workdir} was made with",
                f"it differs in {', '.join(changed[:3])}{more}; take another --workdir, or leave --config out",
            )
        return config
    config = config_file(values.config)
    config.plugins = tuple(dict.fromkeys([*config.plugins, *given]))
    return config


def training_config(values: flags.FlagValues) -> ConfigDict:
    """Return what flags change of a training: that of ``--config``, if it is given, of a workdir that has one too.

    What differs is then given as by flags, and the training says what of it may.
    """
    workdir = values.workdir
    if not (values.config and workdir and is_run(Path(workdir))):
        return base_config(values)
    stored = load_config(Path(workdir), tuple(map(plugins.stored_name, values.plugins)))
    config = config_file(values.config)
    config.plugins = tuple(dict.fromkeys([*stored.plugins, *config.plugins]))  # all that are imported by now
    return config


def _given(config: ConfigDict, overrides: Sequence[str]) -> dict[str, str]:
    """Return the values of flags by their keys; of a choice given by its name alone, by its key "name".

    Raises:
        InputError: on a key that the configuration does not have; on one given twice, of which one would be lost.
    """
    given: dict[str, str] = {}
    for override in modern_flags(overrides):
        key, _, value = override.lstrip("-").partition("=")
        first, remedy = "plug-ins before all else", "give --plugins=FILE,module"
        require(key != "config.plugins", "argument", f"--{key}={value}", first, remedy)
        if is_choice(_find(config, key.split(".")[1:])):
            key = f"{key}.name"
        require(key not in given, f"--{key}", value, "one value", f"it is given as {given.get(key)} too")
        given[key] = value
    return given


def _require_read(values: flags.FlagValues, config: ConfigDict, given: Mapping[str, str]) -> None:
    """Refuse options of a sampler that the command does not draw with, and a number of steps that is given twice.

    Raises:
        InputError: names the flag.
    """
    if "samplers" in values:
        read = list(values.samplers)
    elif "sampler" in values and "num_samples" in values:
        read = [values.sampler or given.get("config.sampler.name", config.sampler.name).strip("'\"")]
    else:
        return  # a training stores them, for commands to come
    for key, value in given.items():
        name, _, option = key.removeprefix("config.sampler.").partition(".")
        if not key.startswith("config.sampler.") or not option:
            continue
        require(name in read, f"--{key}", value, f"an option of {', '.join(read)}, with which is drawn")
        twice = option == "num_steps" and bool(values.steps)
        require(not twice, f"--{key}", value, "the number of steps once", "leave it or --steps out")


def _require_chosen(config: ConfigDict, given: Mapping[str, str], against: str) -> None:
    """Refuse an option of an entry that is not the chosen one, which would never be read.

    Samplers are the exception: commands choose among them.

    Args:
        against: a second data set of the command.

    Raises:
        InputError: names the choice that goes with the option.
    """
    for key, value in given.items():
        parts = key.split(".")
        node: ConfigDict = config
        for depth, part in enumerate(parts[1:-1], start=1):
            choice, node = node, node[part]
            if depth == 1 or not is_choice(choice) or parts[1] == "sampler" or (parts[1] == "data" and part == against):
                continue
            where = ".".join(parts[:depth])
            chosen = given.get(f"{where}.name", choice.name).strip("'\"")
            read = BY_DATA.get(where, ()) if chosen == AUTO else (chosen,)
            of_auto = f" ({' or '.join(read)})" if chosen == AUTO else ""
            expected = f"{where} to be {part!r}, for {chosen!r}{of_auto} does not read it"
            require(part in read, f"--{key}", value, expected, f"give --{where}={part} too")


def _find(config: ConfigDict, path: Sequence[str]) -> object:
    """Return what a configuration has at a path.

    Raises:
        InputError: if there is no such key.
    """
    node: object = config
    for depth, key in enumerate(path):
        if not isinstance(node, ConfigDict) or key not in node:
            known = sorted(node.keys()) if isinstance(node, ConfigDict) else []
            where = ".".join(["config", *path[:depth]])
            raise InputError(
                f"--config.{'.'.join(path)}: no such key{hint(key, known)} {where} has: {', '.join(known)}"
            )
        node = node[key]
    return node


def require_workdir(values: flags.FlagValues) -> Path:
    """Return the workdir.

    Raises:
        InputError: if the flag is missing.
    """
    require(bool(values.workdir), "workdir", values.workdir, "the folder of a run", "give --workdir=runs/NAME")
    return Path(values.workdir)


def open_configured(values: flags.FlagValues, config: ConfigDict) -> Run:
    """Open the run of a command, with its configuration as the flags have changed it."""
    return load_run(require_workdir(values), config, pick_device(values.device))
