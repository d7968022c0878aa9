"""Parts of one's own: files and modules that are imported first, so that what they register is there like the rest.

A file stays where it is; a run stores its absolute path, and finds it from any folder. Code that lies in the folder of
a run is never imported because the run says so: a run may come from somebody else.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from sde_diffusion.errors import InputError, require
from sde_diffusion.reading import require_file
from sde_diffusion.registry import source_of

_loaded: dict[str, ModuleType] = {}
"""Plug-ins by the name that a run stores: an absolute path, or the name of a module."""


def stored_name(plugin: str, folder: Path | None = None) -> str:
    """Return the name under which a run stores a plug-in: of a file its absolute path.

    Args:
        plugin: a file ending in .py, or a module.
        folder: where else than in the current one a file may lie.
    """
    if not plugin.endswith(".py"):
        return plugin
    path = Path(plugin).expanduser()
    if folder is not None and not path.exists():
        path = folder / path
    return os.path.realpath(path)  # not Path.resolve, which raises on a link that leads to itself


def load(plugins: Iterable[str]) -> None:
    """Import plug-ins that are not imported yet.

    Args:
        plugins: names as :func:`stored_name` gives them.

    Raises:
        InputError: if one is not there, raises (names its file and line), or registers a name that is taken.
    """
    for name in plugins:
        if name not in _loaded:
            _loaded[name] = _import_file(Path(name)) if name.endswith(".py") else _import_module(name)


def of_run(stored: Sequence[str], given: Sequence[str], workdir: Path) -> list[str]:
    """Return the plug-ins that a run needs, those just given among them.

    A file that was moved is found in its new place, if that is given.

    Raises:
        InputError: if one is gone, or lies in the run's own folder and was not given.
    """
    moved = {Path(name).name for name in given if name.endswith(".py")}
    kept = [name for name in stored if name in given or Path(name).name not in moved]
    for name in kept:
        if not name.endswith(".py") or name in given:
            continue
        remedy = f"give its new place, --plugins=FOLDER/{Path(name).name}"
        require_file("plugins", name, f"a file that the run in {workdir} was made with", remedy)
        inside = Path(name).resolve().is_relative_to(workdir.resolve())
        expected = f"a file outside of {workdir}: code in the folder of a run is not run because the run says so"
        require(not inside, "plugins", name, expected, f"if you trust it, give --plugins={name}")
    return list(dict.fromkeys([*kept, *given]))


def behind(names: Iterable[str]) -> list[str]:
    """Return the plug-ins that registered any of ``names``, as far as they are not loaded plug-ins' own parts."""
    files = {Path(m.__file__ or "") for m in _loaded.values()}
    packages = {path.parent for path in files if path.name == "__init__.py"}
    found = []
    for source in filter(None, map(source_of, names)):
        path = Path(source)
        if source not in _loaded and path not in files and not packages & set(path.parents):
            found.append(source)
    return list(dict.fromkeys(found))


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failure(name, error, None) from None
        message = f"plugins={name!r}: expected an installed module, or a file ending in .py; there is none of that name"
        raise InputError(message) from None
    except Exception as error:  # whatever a person's code raises
        spec = importlib.util.find_spec(name)
        raise _failure(name, error, spec.origin if spec else None) from None


def _import_file(path: Path) -> ModuleType:
    require_file("plugins", path, "an existing file, or an installed module")
    name = f"plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"plugins={str(path)!r}: expected a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for it
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # it may import what lies beside it, as a script may
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a person's code raises
        del sys.modules[name]
        raise _failure(str(path), error, str(path)) from None
    return module


def _failure(plugin: str, error: Exception, file: str | None) -> InputError:
    """Return the error that names the plug-in, and the last of its lines that ran."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else None
    where = f", line {line}" if line is not None else ""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return InputError(f"plugins={plugin!r}{where}: {kind}{error}")
