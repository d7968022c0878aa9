"""Flags that several commands share, and how a command's flags and its configuration are read."""

from __future__ import annotations

import json
import os
import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from absl import flags
from ml_collections import ConfigDict, config_flags

import sde_diffusion.config as default_file
from sde_diffusion import plugins
from sde_diffusion.codecs.base import AUTO
from sde_diffusion.config import BY_SHAPE, default_config
from sde_diffusion.errors import InputError, require, require_int
from sde_diffusion.noise import require_seed
from sde_diffusion.registry import hint
from sde_diffusion.runs.open import load_run, pick_device
from sde_diffusion.runs.run import Run
from sde_diffusion.stored_config import (
    complete,
    differences,
    is_choice,
    load_config,
    merge,
    modern,
    modern_flags,
    renamed,
)
from sde_diffusion.training import shipped
from sde_diffusion.training.settings import is_run

BY_DATA = {"config.network": BY_SHAPE, "config.codec": ("grey_levels", "standardised")}
"""What "auto" chooses from."""


def define_run_flags(values: flags.FlagValues, workdir: str | None = None) -> None:
    """Define what every command that computes has."""
    flags.DEFINE_string("workdir", workdir, "Folder of the run.", flag_values=values)
    flags.DEFINE_enum("device", "auto", ["auto", "cpu", "cuda", "mps"], "Where to compute.", flag_values=values)
    flags.DEFINE_integer("seed", None, "Seed of everything random; by default the configuration's.", flag_values=values)
    flags.DEFINE_boolean("quiet", False, "No progress bar.", flag_values=values)


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


PATHS = ("workdir", "source", "init", "data", "conditions", "inception_weights", "image", "compare", "config")
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
    overrides = modern_flags(overrides)
    for override in overrides:
        key = override.lstrip("-").partition("=")[0]
        require(key != "config.plugins", "argument", override, "plug-ins before all else", "give --plugins=FILE,module")
        _check_key(config, override.lstrip("-").partition("=")[0].split(".")[1:])
    overrides = [_by_name(config, override) for override in overrides]
    _require_single(overrides)
    _require_read(values, config, overrides)
    _require_chosen(config, overrides, against=values.against if "against" in values else "")
    try:
        holder = flags.FlagValues()
        config_flags.DEFINE_config_dict("config", config, flag_values=holder, sys_argv=["", *overrides])
        holder(["", *overrides])
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


def config_file(path: str) -> ConfigDict:
    """Read a configuration file, ``FILE.py`` or ``FILE.py:VARIANT``, and import the plug-ins that it names.

    Without a path, the default.

    Raises:
        InputError: if it is not there, or cannot be read.
    """
    path = path or default_file.__file__
    if Path(path).suffix in (".json", ".yaml", ".yml"):
        return _plain_config(Path(path))
    stem, colon, variant = path.partition(".py:")  # not at any colon: a drive has one
    file = f"{stem}.py" if colon else path
    expected = "an existing Python file with a function get_config(), as FILE.py or FILE.py:VARIANT"
    require(Path(file).is_file(), "config", path, expected)
    try:
        config: ConfigDict = runpy.run_path(file)["get_config"](*([variant] if colon else []))
        config.lock()
    except InputError as error:
        raise InputError(f"config={path!r}: {error}") from None
    except SystemExit as error:
        reason = f"it ends the program, sys.exit({error.code!r}), where it should return a configuration"
        raise InputError(f"config={path!r}: {reason}") from None
    except Exception as error:  # whatever a person's file raises
        reason = renamed(None, error) or f"cannot be read: {type(error).__name__}: {error}"
        raise InputError(f"config={path!r}: {reason}") from None
    if old := renamed(config):
        raise InputError(f"config={path!r}: {old}")
    config.plugins = tuple(plugins.stored_name(name, Path(file).parent) for name in config.plugins)
    plugins.load(config.plugins)
    return complete(config, path)


def _numbers(value: Any) -> Any:
    """Return what YAML says with 1e-5 as a number, which YAML takes for a text."""
    if isinstance(value, dict):
        return {key: _numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value)
    return float(value) if is_number else value


def _plain_config(path: Path) -> ConfigDict:
    """Read a configuration that is data: the keys that differ from the default, or a run's own ``config.json``.

    Raises:
        InputError: if it cannot be read, or has a key that is not known.
    """
    require(path.is_file(), "config", str(path), "an existing file")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else _numbers(yaml.safe_load(text))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"config='{path}': cannot be read: {' '.join(str(error).split())[:200]}") from None
    require(isinstance(content, dict), "config", str(path), "keys and values of a configuration")
    values = content["config"] if {"config", "data", "provenance"} <= content.keys() else content
    names = [plugins.stored_name(str(name), path.parent) for name in values.get("plugins", ())]
    plugins.load(names)
    config = default_config()
    merge(config, {**modern(values), "plugins": names}, path)
    return config


def _by_name(config: ConfigDict, override: str) -> str:
    """Return a flag that gives a choice by its name alone, as one of its key "name"."""
    key, _, value = override.partition("=")
    node: object = config
    for part in key.lstrip("-").split(".")[1:]:
        node = node[part] if isinstance(node, ConfigDict) else None
    return f"{key}.name={value}" if is_choice(node) else override


def _require_single(overrides: Sequence[str]) -> None:
    """Refuse a key that is given twice, of which one would be lost, or both taken together.

    Raises:
        InputError: names both.
    """
    seen: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.lstrip("-").partition("=")
        require(key not in seen, f"--{key}", value, "one value", f"it is given as {seen.get(key)} too")
        seen[key] = value


def _require_read(values: flags.FlagValues, config: ConfigDict, overrides: Sequence[str]) -> None:
    """Refuse options of a sampler that the command does not draw with, and a number of steps that is given twice.

    Raises:
        InputError: names the flag.
    """
    given = dict(override.lstrip("-").split("=", 1) for override in overrides)
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


def _require_chosen(config: ConfigDict, overrides: Sequence[str], against: str) -> None:
    """Refuse an option of an entry that is not the chosen one, which would never be read.

    Samplers are the exception: commands choose among them.

    Args:
        against: a second data set of the command.

    Raises:
        InputError: names the choice that goes with the option.
    """
    values = dict(override.lstrip("-").split("=", 1) for override in overrides)
    for key, value in values.items():
        parts = key.split(".")
        node: ConfigDict = config
        for depth, part in enumerate(parts[1:-1], start=1):
            choice, node = node, node[part]
            if depth == 1 or not is_choice(choice) or parts[1] == "sampler" or (parts[1] == "data" and part == against):
                continue
            where = ".".join(parts[:depth])
            chosen = values.get(f"{where}.name", choice.name).strip("'\"")
            read = BY_DATA.get(where, ()) if chosen == AUTO else (chosen,)
            of_auto = f" ({' or '.join(read)})" if chosen == AUTO else ""
            expected = f"{where} to be {part!r}, for {chosen!r}{of_auto} does not read it"
            require(part in read, f"--{key}", value, expected, f"give --{where}={part} too")


def _check_key(config: ConfigDict, path: Sequence[str]) -> None:
    node = config
    for depth, key in enumerate(path):
        if not isinstance(node, ConfigDict) or key not in node:
            known = sorted(node.keys()) if isinstance(node, ConfigDict) else []
            where = ".".join(["config", *path[:depth]])
            raise InputError(
                f"--config.{'.'.join(path)}: no such key{hint(key, known)} {where} has: {', '.join(known)}"
            )
        node = node[key]


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
