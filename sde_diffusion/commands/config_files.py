"""Configurations in files: of code, or of data."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import yaml
from ml_collections import ConfigDict

import sde_diffusion.config as default_file
from sde_diffusion import plugins
from sde_diffusion.config import default_config
from sde_diffusion.errors import InputError, require, shortened
from sde_diffusion.reading import read_json, read_text, require_file, require_shallow
from sde_diffusion.stored_config import complete, merge, modern, named_plugins, renamed


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
    require_file("config", file, expected)
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


def _read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        InputError: if it is none, or too large for a reader that takes a second for a tenth of a megabyte.
    """
    text = read_text("config", path, limit=1 << 20)
    try:
        content = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"config='{path}': cannot be read: {shortened(str(error))}") from None
    require_shallow(content, f"config='{path}'", len(text))
    return _numbers(content)


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
    content = read_json(path, "config") if path.suffix == ".json" else _read_yaml(path)
    require(isinstance(content, dict), "config", str(path), "keys and values of a configuration")
    values = content["config"] if {"config", "data", "provenance"} <= content.keys() else content
    require(isinstance(values, dict), "config", str(path), "keys and values of a configuration under 'config'")
    names = [plugins.stored_name(name, path.parent) for name in named_plugins(values, f"config='{path}'")]
    plugins.load(names)
    config = default_config()
    merge(config, {**modern(values), "plugins": names}, path)
    return config
