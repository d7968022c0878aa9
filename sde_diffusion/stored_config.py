"""The configuration of a run as it is stored: what was chosen, so that what is registered later changes no run.

Of every choice, its name and the options of the entry named; of other entries only what is not their default, which a
later command may choose. What is not stored is as this version has it by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sde_diffusion import plugins
from sde_diffusion.config import default_config
from sde_diffusion.errors import InputError, require, require_float, shortened
from sde_diffusion.registry import hint
from sde_diffusion.terminal import notice
from sde_diffusion.training.settings import CONFIG_FILE, read_settings

RENAMED = {
    "loss": "objective.denoising",
    "denoiser.conditioning": "denoiser.noise_label",
    "training.dequantise": "codec.grey_levels.dequantise",
}
"""Keys of version 0.1.0, and what they are now."""


def chosen(config: ConfigDict) -> dict[str, Any]:
    """Return what a run stores of a whole configuration, nested, with the plug-ins that it needs."""
    stored = _chosen(config.to_dict(), default_config().to_dict())
    names = [value for value in _leaves(stored) if isinstance(value, str)]
    stored["plugins"] = [*dict.fromkeys([*config.plugins, *plugins.behind(names)])]
    return stored


def _chosen(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        if not isinstance(value, dict):
            found[key] = value
        elif "name" not in values or key == values["name"]:
            found[key] = _chosen(value, default.get(key, {}))
        elif other := _changed(value, default.get(key, {})):
            found[key] = other
    return found


def _changed(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in default or default[key] != value}


def _leaves(values: dict[str, Any]) -> list[Any]:
    return [leaf for v in values.values() for leaf in (_leaves(v) if isinstance(v, dict) else [v])]


def load_config(workdir: Path, given: tuple[str, ...] = ()) -> ConfigDict:
    """Read the configuration of a run, whole, its plug-ins imported first.

    Args:
        given: plug-ins besides those that the run stores.

    Raises:
        InputError: if there is none, a plug-in of it is gone, or it has a key this version does not know.
    """
    stored = modern(read_settings(workdir)["config"])
    names = plugins.of_run(named_plugins(stored, str(workdir / CONFIG_FILE)), given, workdir)
    plugins.load(names)
    config = default_config()
    merge(config, {**stored, "plugins": names}, workdir / CONFIG_FILE)
    return config


def named_plugins(values: dict[str, Any], where: str) -> list[str]:
    """Return the plug-ins that a nested configuration names.

    Raises:
        InputError: if they are no list of names.
    """
    names = values.get("plugins", [])
    ok = isinstance(names, list) and all(isinstance(name, str) and name and "\0" not in name for name in names)
    require(ok, f"{where}: plugins", names, "a list of files and modules")
    return list(names)


def _section(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section of a nested configuration; of a choice that is given by its name alone, that."""
    found = values.get(name, {})
    found = {"name": found} if isinstance(found, str) else found
    require(isinstance(found, dict), f"config.{name}", found, "a section of keys and values")
    return dict(found)


def modern(values: dict[str, Any]) -> dict[str, Any]:
    """Return a nested configuration of version 0.1.0 in the words of this one.

    What is ``RENAMED`` has its new name; ``sampler.NAME.clip``, if it is not 0, a static
    ``denoiser.thresholding`` of the samplers that have it. Of different bounds it is that of the chosen sampler.
    """
    denoiser, sampler = _section(values, "denoiser"), _section(values, "sampler")
    if "conditioning" in denoiser:
        denoiser["noise_label"] = denoiser.pop("conditioning")
    objective = {"name": "denoising", "denoising": values["loss"]} if "loss" in values else {}
    training = _section(values, "training")
    spread = {"dequantise": training.pop("dequantise")} if "dequantise" in training else {}
    codec = {"grey_levels": spread} if spread else {}
    old = {name: dict(options) for name, options in sampler.items() if isinstance(options, dict) and "clip" in options}
    clips = {name: options.pop("clip") for name, options in old.items()}
    for name, clip in clips.items():
        require_float(f"config.sampler.{name}.clip", clip, 0.0)
    bounds = {name: clip for name, clip in clips.items() if clip}
    if bounds and "thresholding" not in denoiser:
        bound = bounds.get(sampler.get("name", ""), max(bounds.values()))
        bounded = sorted(name for name, clip in bounds.items() if clip == bound)
        some = bounded if len(bounded) < len(clips) else []
        denoiser["thresholding"] = {"name": "static", "samplers": some, "static": {"bound": bound}}
        if len(bounded) < len(bounds):
            notice(f"sampler.*.clip={bounds}: one bound is kept, {bound:g} of {', '.join(bounded)}")
    parts = {"denoiser": denoiser, "sampler": {**sampler, **old}, "objective": objective}
    parts |= {"training": training, "codec": codec}
    kept = {name: value for name, value in values.items() if name != "loss"}
    return {**kept, **{name: part for name, part in parts.items() if part}}


def renamed(config: ConfigDict | None, error: Exception | None = None) -> str | None:
    """Return a line on a key of version 0.1.0 that a configuration has, or that it lacked; None if there is none.

    Args:
        config: the configuration, if it could be made.
        error: what was raised if it could not.
    """
    lacked = str(error).strip("'\"") if isinstance(error, (AttributeError, KeyError)) else None
    for old, new in RENAMED.items():
        section, _, key = old.rpartition(".")
        found = config is not None and key in (config.get(section, {}) if section else config)
        if found or key == lacked:
            return f"config.{old} is config.{new} now; write config.{new} for it"
    return None


def is_choice(node: Any) -> bool:
    """Return whether a key of a configuration is a choice: a name, and the options of each entry."""
    return isinstance(node, ConfigDict) and "name" in node


def modern_flags(overrides: Sequence[str]) -> list[str]:
    """Return ``--config.KEY=VALUE`` with the keys of version 0.1.0 replaced by those of this one."""
    found = []
    for override in overrides:
        key, _, value = override.lstrip("-").partition("=")
        parts = key.split(".")
        old = next((old for old in RENAMED if f"{key}.".startswith(f"config.{old}.")), None)
        if old is not None:
            found.append(override.replace(f"config.{old}", f"config.{RENAMED[old]}", 1))
        elif len(parts) == 4 and parts[1] == "sampler" and parts[3] == "clip":
            bounded = "--config.denoiser.thresholding"
            named = [f"{bounded}.name=static", f"{bounded}.static.bound={value}", f"{bounded}.samplers=('{parts[2]}',)"]
            found += named if value not in ("0", "0.0") else [f"{bounded}.name=none"]
        else:
            found.append(override)
    return found


def complete(config: ConfigDict, source: str = "config") -> ConfigDict:
    """Return a configuration with the keys of what was registered after it was made, at their defaults.

    Args:
        source: where it is from, for a message.

    Raises:
        InputError: on a key that is not known.
    """
    whole = default_config()
    _overlay(whole, config, source, "")
    return whole


def _overlay(whole: ConfigDict, config: ConfigDict, source: str, prefix: str) -> None:
    for key, value in config.items():
        if key not in whole:
            raise InputError(
                f"config={source!r}: unknown key {prefix + key!r}{hint(key, list(whole))} it is never read"
            )
        if isinstance(value, ConfigDict) and isinstance(whole[key], ConfigDict):
            _overlay(whole[key], value, source, f"{prefix}{key}.")
        else:
            whole[key] = value


def _tuples(value: Any) -> Any:
    """JSON has no tuples: read its lists as what they were."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def merge(config: ConfigDict, values: dict[str, Any], path: Path, prefix: str = "") -> None:
    """Set the keys of a nested dictionary, read from ``path``, in ``config``.

    Raises:
        InputError: on a key that this version does not know, or a value of another type.
    """
    for key, value in _tuples(values).items():
        if key not in config:
            raise InputError(
                f"{path}: unknown key {shortened(f'{prefix}{key}')!r}{hint(str(key), list(config))} is it of another "
                "version, or of a plug-in that --plugins=FILE would load?"
            )
        if is_choice(config[key]) and isinstance(value, str):  # a choice may be given by its name alone
            config[key].name = value
            continue
        if isinstance(config[key], ConfigDict) and isinstance(value, dict):
            merge(config[key], value, path, f"{prefix}{key}.")
            continue
        kind = config.get_type(key)
        fits = isinstance(value, (int, float) if kind in (int, float) else kind) or kind is type(None)
        fits = fits and (kind in (bool, object) or not isinstance(value, bool))
        expected = "a section of keys and values" if kind is ConfigDict else f"a value of type {kind.__name__}"
        require(fits, f"{path}: {prefix}{key}", value, expected)
        config[key] = value


def differences(a: ConfigDict, b: ConfigDict, prefix: str = "") -> list[str]:
    """Return the dotted keys in which two configurations differ."""
    found = []
    for key in sorted({*a, *b}):
        x, y = a.get(key), b.get(key)
        if isinstance(x, ConfigDict) and isinstance(y, ConfigDict):
            found += differences(x, y, f"{prefix}{key}.")
        elif x != y:
            found.append(prefix + key)
    return found


def value_of(config: ConfigDict, key: str) -> Any:
    """Return what a configuration has under a dotted key; None if it has none."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part)
    return node


def is_read(config: ConfigDict, key: str) -> bool:
    """Return whether a dotted key is of what is chosen, and no option of an entry beside it."""
    node: Any = config
    for part in key.split("."):
        if is_choice(node) and isinstance(node.get(part), ConfigDict) and part != node.name:
            return False
        node = node.get(part)
    return True
