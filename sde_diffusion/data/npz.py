"""Arrays from a NumPy ``.npz`` file: 8-bit images or continuous data, and what is known of each example."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data.base import (
    CLASSES,
    DATASETS,
    Dataset,
    Examples,
    count_test,
    random_split,
    require_conditions,
    require_data,
)
from sde_diffusion.errors import require
from sde_diffusion.reading import read_arrays

_Arrays = dict[str, np.ndarray]


def _read(argument: str, root: str) -> tuple[_Arrays, tuple[str, ...], tuple[str, ...]]:
    """Return all arrays of the file but ``class_names`` and ``columns``, and the strings of these two.

    Pickled objects are refused, because unpickling runs code.

    Raises:
        InputError: on a missing or damaged file, pickled objects, or names that are not strings (n,).
    """
    arrays = read_arrays(argument, root)
    class_names, columns = (_strings(name, arrays.pop(name, None)) for name in ("class_names", "columns"))
    return arrays, class_names, columns


def _strings(name: str, array: np.ndarray | None) -> tuple[str, ...]:
    if array is None:
        return ()
    ok = array.dtype.kind == "U" and array.ndim == 1
    require(ok, f"array {name} dtype and shape", f"{array.dtype} {array.shape}", "strings (n,)")
    return tuple(array.tolist())


def _to_tensor(name: str, array: np.ndarray) -> Tensor:
    """Make uint8 images (N, C, H, W) or float32 (N, *) of an array.

    Raises:
        InputError: on a single number, another dtype, or a shape that does not say where the channels are.
    """
    require(array.ndim >= 1, f"array {name} shape", (), "(N, *)")
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, which Dataset refuses
            return torch.from_numpy(np.asarray(array, dtype=np.float32))
    kinds = "uint8 (images) or floating point (vectors)"
    require(array.dtype == np.uint8, f"array {name} dtype", str(array.dtype), kinds, "convert it with astype")
    images = torch.from_numpy(array)
    if images.ndim == 3:
        return images[:, None]
    remedy = "uint8 are pictures; convert other data to floats"
    require(images.ndim == 4, f"array {name} shape", array.shape, "(N, H, W), (N, H, W, C) or (N, C, H, W)", remedy)
    first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
    layouts = "1 or 3 channels either second, (N, C, H, W), or last, (N, H, W, C)"
    remedy = "both fit: nothing tells which it is" if first else "neither fits"
    require(first != last, f"array {name} shape", array.shape, layouts, remedy)
    return images if first else images.permute(0, 3, 1, 2).contiguous()


def _to_condition(condition: str, name: str, array: np.ndarray) -> Tensor:
    """Make float32 (N, …) of the array ``name`` of numbers, or int64 of classes, which may be floats that are whole.

    Raises:
        InputError: on another dtype, or classes that are not whole.
    """
    remedy = "number them from 0 and say their names in class_names" if condition == CLASSES else "leave it out"
    require(array.dtype.kind in "biuf", f"array {name} dtype", str(array.dtype), "numbers, as conditions are", remedy)
    if condition != CLASSES:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, which is refused
            return torch.from_numpy(np.asarray(array, dtype=np.float32))
    with np.errstate(invalid="ignore"):  # NaN and infinity become whole numbers, which differ from them
        classes = array.astype(np.int64)
    broken = array[classes != array]
    first = broken.flat[0].item() if broken.size else None
    require(broken.size == 0, f"array {name}", first, "whole numbers, as classes are", f"{broken.size} are not")
    return torch.from_numpy(classes)


def _with_prefix(arrays: _Arrays, split: str, class_names: tuple[str, ...]) -> Examples:
    """Return the examples of the array ``split`` and their conditions, the arrays ``split_NAME``.

    Raises:
        InputError: on arrays that are neither data nor conditions, or a condition of another length.
    """
    data, given = _to_tensor(split, arrays[split]), {}
    for name, array in arrays.items():
        if name.startswith(f"{split}_"):
            condition = name.removeprefix(f"{split}_")
            given[condition] = _to_condition(condition, name, array)
    require_conditions(split, len(data), given, class_names)
    return Examples(data, given)


def _with_others(arrays: _Arrays, data_name: str, class_names: tuple[str, ...]) -> Examples:
    """Return the examples of one array and their conditions, all other arrays.

    Raises:
        InputError: on arrays that are neither data nor conditions; names those that are not of the length of the data.
    """
    data = _to_tensor(data_name, arrays[data_name])
    others = {name: array for name, array in arrays.items() if name != data_name}
    odd = {name: array.shape for name, array in sorted(others.items()) if array.shape[:1] != (len(data),)}
    expected = f"({len(data)}, …), one value for each example of {data_name!r}"
    require(not odd, "shapes of arrays", odd, expected, "all arrays beside the data are conditions")
    given = {name: _to_condition(name, name, array) for name, array in others.items()}
    require_conditions(data_name, len(data), given, class_names)
    return Examples(data, given)


def _data_name(argument: str, root: str, arrays: _Arrays, otherwise: str) -> str:
    """Return the name of the one array that holds the data: ``x``, or the only one.

    Raises:
        InputError: if there is neither; tells ``otherwise``, what else could be there, and names the arrays.
    """
    expected = f"{otherwise}, or an array 'x', or a single array"
    require("x" in arrays or len(arrays) == 1, argument, root, expected, f"it has {sorted(arrays)}")
    return "x" if "x" in arrays else next(iter(arrays))


def _require_pairs(root: str, arrays: _Arrays) -> None:
    """Require that all arrays beside train and test are conditions of both."""
    others = sorted(arrays.keys() - {"train", "test"})
    strange = [name for name in others if not name.startswith(("train_", "test_"))]
    expected = "arrays 'train' and 'test' and conditions 'train_NAME' and 'test_NAME'"
    require(not strange, "root", root, expected, f"it also has {strange}")
    for name in others:
        split, _, condition = name.partition("_")
        other = f"{'test' if split == 'train' else 'train'}_{condition}"
        require(other in arrays, "root", root, "conditions of both splits", f"it has {name!r} without {other!r}")


@DATASETS.register("npz")
def npz(root: str = "", test_fraction: float = 0.1, levels: int = 256) -> Dataset:
    """The arrays of an ``.npz`` file, with what is known of each example.

    Either ``train`` and ``test``, with conditions ``train_NAME`` and ``test_NAME`` (such as ``train_classes``); or one
    array, ``x`` or the only one, which is split by a fixed permutation, and every other array (N, …) a condition. The
    strings ``columns`` name the components of vectors, the strings ``class_names`` the classes 0, 1, …

    uint8 arrays are images, with channels second, last or absent; floating-point arrays (N, *) are continuous data.

    Args:
        root: the file.
        test_fraction: share of a single array that is held out, in (0, 1).
        levels: number of grey levels of uint8 images, 2 … 256.

    Raises:
        InputError: on a missing or damaged file, pickled objects, other arrays, dtypes or shapes, a condition of one
            split alone, NaN or infinity.
    """
    require(isinstance(root, str) and root != "", "root", root, "an .npz file")
    arrays, class_names, columns = _read("root", root)
    if {"train", "test"} <= arrays.keys():
        _require_pairs(root, arrays)
        train, test = (_with_prefix(arrays, split, class_names) for split in ("train", "test"))
    else:
        both = _with_others(arrays, _data_name("root", root, arrays, "arrays 'train' and 'test'"), class_names)
        train_indices, test_indices = random_split(len(both), count_test(len(both), test_fraction, f"root='{root}'"))
        train, test = both[train_indices], both[test_indices]
    known = {name: (value, test.conditions[name]) for name, value in train.conditions.items()}
    return Dataset(
        "npz", train.x, test.x, levels if train.x.dtype == torch.uint8 else None, known, class_names, columns
    )


def read_rows(
    path: str | Path, like: tuple[int, ...] | None = None, levels: int | None = 256, columns: tuple[str, ...] = ()
) -> Examples:
    """Read new examples of an ``.npz`` file: its array ``x``, or ``test``, or the only one, with its conditions.

    The conditions of ``test`` are ``test_NAME`` (``train`` and ``train_NAME`` are passed over), of the others all other
    arrays.

    Args:
        path: the file.
        like: the shape that one example must have, or None for any.
        levels: number of grey levels that pictures must have.
        columns: names that the columns must have, where the file names them.

    Raises:
        InputError: on what :func:`npz` refuses, no such array, or examples of another shape, of more levels or of other
            columns.
    """
    arrays, class_names, named = _read("file", str(path))
    if "test" in arrays and "x" not in arrays:
        used = {key for key in arrays if key == "test" or key.startswith("test_")}
        strange = sorted(key for key in arrays.keys() - used if key != "train" and not key.startswith("train_"))
        require(not strange, "file", str(path), "array 'test' and conditions 'test_NAME'", f"it also has {strange}")
        name, examples = "test", _with_prefix(arrays, "test", class_names)
    else:
        name = _data_name("file", str(path), arrays, "an array 'test'")
        examples = _with_others(arrays, name, class_names)
    shape = tuple(examples.x.shape)
    if like is not None:
        expected = f"(N, {', '.join(map(str, like))}), as expected of an example"
        require(shape[1:] == tuple(like), f"file='{path}': array {name} shape", shape, expected)
    expected = f"{', '.join(columns)}, as the model was trained on"
    require(not (named and columns) or named == columns, f"file='{path}': columns", ", ".join(named), expected)
    require_data(f"array {name}", examples.x, levels if examples.x.dtype == torch.uint8 else None, named)
    return examples


def read_conditions(path: str | Path) -> dict[str, Tensor]:
    """Read conditions of an ``.npz`` file by name, (n, …) each: classes int64, all others float32.

    Raises:
        InputError: on a missing or damaged file, pickled objects, arrays of anything but finite numbers, or classes
            that are not whole numbers from 0.
    """
    arrays, _, _ = _read("conditions", str(path))
    found = {name: _to_condition(name, name, array) for name, array in arrays.items()}
    for name, value in found.items():
        require(value.ndim > 0, f"array {name} shape", (), "(n, …), a row for each sample")
        require_conditions("array", len(value), {name: value})
    return found
