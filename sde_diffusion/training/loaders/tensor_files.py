"""Files of weights: safetensors, and what ``torch.save`` wrote; tensors, numbers and text are read, never code.

A state dict may lie at the top of what was saved, or under a name that says whether it is an average.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.errors import InputError, require, shortened
from sde_diffusion.memory import require_memory
from sde_diffusion.reading import require_file, require_unfolded

AVERAGED = ("ema", "model_ema", "ema_state_dict", "ema_model", "averaged")
TRAINED = ("model", "state_dict", "model_state_dict", "net", "network", "unet", "weights")
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def read_pickle(path: Path, kind: str, outline: bool = False) -> Any:
    """Return what ``torch.save`` wrote, on the CPU.

    Args:
        kind: what the file should be, for the error.
        outline: of tensors their names, shapes and dtypes alone, on the meta device.

    Raises:
        InputError: if the file holds anything that would run, or cannot be read.
    """
    # A learning rate may be a NumPy number: no code, but a name that must be known.
    scalar: Any = np.float64(0.0).__reduce__()[0]
    numbers = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    _require_fitting(path)
    try:
        with torch.serialization.safe_globals([*numbers, np.dtype, np.dtypes.Float64DType]):
            return torch.load(path, map_location="meta" if outline else "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{found[1]}, which could run code" if found else "something else than tensors and numbers"
        raise InputError(f"{path}: refused, it holds {what}; only tensors and numbers are read") from None
    except Exception as error:  # whatever a broken file makes the reader raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a readable {kind} ({reason})") from None


def _require_fitting(path: Path) -> None:
    """Refuse what is no file of weights that memory can hold, compressed or not."""
    size = require_file("source", path).stat().st_size
    require_memory("source", str(path), size, "its bytes")
    if zipfile.is_zipfile(path):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:  # whose reader says what is wrong with it
            require_unfolded("source", path, archive)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by their names, which have no order in it, in that of the alphabet.

    Raises:
        InputError: if it cannot be read.
    """
    from safetensors.torch import load_file

    _require_fitting(path)
    try:
        return dict(sorted(load_file(path).items()))
    except Exception as error:  # a header that is none, a dtype that PyTorch has not: many kinds
        raise InputError(f"{path}: not a readable safetensors file ({shortened(str(error))})") from None


def read_tensors(path: Path, kind: str) -> dict[str, Tensor]:
    """Return the tensors of a file that holds nothing else, by their names."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    content = read_pickle(path, kind)
    require(is_state(content), "source", str(path), f"a {kind}: tensors by their names, and nothing else")
    return dict(content)


def is_state(content: Any) -> bool:
    """Return whether something read is a state dict: tensors by their names, and nothing else."""
    named = isinstance(content, Mapping) and len(content) > 0
    return named and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def states(content: Any) -> tuple[dict[str, Tensor], dict[str, Tensor] | None] | None:
    """Return the averaged state dict of what was read, and with one the trained, else None; None if there is no state.

    What names of tensors have in common that says nothing, ``module.`` and the like, is left out.
    """
    if is_state(content):
        return _plain(content), None
    if not isinstance(content, Mapping):
        return None
    averaged, trained = (
        next((_plain(content[key]) for key in keys if is_state(content.get(key))), None) for keys in (AVERAGED, TRAINED)
    )
    if averaged is None:
        return None if trained is None else (trained, None)
    return averaged, trained


def _plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without what a wrapper has put before every name."""
    found = dict(state)
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def outline(path: Path) -> Any:
    """Return what lies in a file of weights, tensors by their shapes alone; None for one that cannot be read so."""
    if not path.is_file() or path.suffix not in PICKLES:
        return None
    try:
        return read_pickle(path, "file", outline=True)
    except InputError:
        return None


def problems_of(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> str:
    """Return in words what keeps tensors from having the names and shapes that are wanted; "" if nothing does."""
    found = [f"missing {name}" for name in shapes if name not in tensors]
    found += [f"unexpected {name}" for name in tensors if name not in shapes]
    found += [
        f"{name} has shape {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    return "; ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
