"""What samples and examples of a run are conditioned on: classes by number or name, or what the data have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sde_diffusion.data import Examples, random_split
from sde_diffusion.denoisers import of_batch
from sde_diffusion.errors import InputError, require
from sde_diffusion.registry import hint

if TYPE_CHECKING:
    from sde_diffusion.runs.run import Run

DATA, NONE, ALL = "data", "none", "all"
"""In place of classes: those of the data, no class, every class."""
Classes = int | str | Sequence[int | str] | Tensor | np.ndarray | None
LISTED = 20
"""Names of classes that a message tells."""


def class_numbers(classes: int | str | Sequence[int | str], names: Sequence[str], count: int) -> list[int]:
    """Return classes as numbers.

    Args:
        classes: numbers or names, several in a sequence or separated by commas, or "all".
        names: of the classes 0, 1, …, where they have names.
        count: number of classes that the network tells apart.

    Raises:
        InputError: on a class that there is not.
    """
    if classes == ALL:
        return list(range(count))
    parts = classes.split(",") if isinstance(classes, str) else classes if isinstance(classes, Sequence) else [classes]
    found = []
    for part in parts:
        text = str(part).strip()
        if text in names:
            found.append(list(names).index(text))
            continue
        whole = text.isdecimal() and int(text) < count
        given = part if text else classes  # of "0,,1" all, for the part is nothing
        require(whole, "classes", given, _known_classes(names, count), hint(text, list(names)).strip("; "))
        found.append(int(text))
    require(len(found) > 0, "classes", classes, "at least one class")
    return found


def _known_classes(names: Sequence[str], count: int) -> str:
    """Return what a message says that classes can be: names only where they are not the numbers, and not too many."""
    listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    named = f", or one of {listed}" if list(names) != [str(i) for i in range(len(names))] else ""
    return f"numbers from 0 to {count - 1}{named}, with commas between several, or {ALL!r}"


def words(classes: Classes) -> str:
    """Return what a record says of classes."""
    if isinstance(classes, (Tensor, np.ndarray)):
        return "a class for each"
    return DATA if classes in (None, "") else str(classes)


def conditions_of_samples(run: Run, n: int, classes: Classes, others: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``n`` samples are conditioned on, one row a sample.

    Args:
        classes: numbers or names of classes, which take turns; a tensor or an array (n,) with that of each; None or
            "none" for no class.
        others: other conditions of the network by name, (n, *) each, or one number for all.

    Raises:
        InputError: on conditions that the run does not take, that are missing, given twice, of another length or out
            of range.
    """
    found = {name: _single(of_batch(name, value, n)) for name, value in others.items()}
    if isinstance(classes, np.ndarray):
        classes = torch.from_numpy(classes)
    asked = isinstance(classes, Tensor) or classes not in (None, "")
    once = not asked or "classes" not in found
    require(once, "classes", classes, "none, for there are classes among the conditions too", "give one of the two")
    if isinstance(classes, Tensor):
        found["classes"] = classes
    elif classes not in (None, "", NONE):
        require_classes(run, classes)
        numbers = class_numbers(classes, run.class_names, run.num_classes)
        found["classes"] = torch.tensor(numbers)[torch.arange(n) % len(numbers)]
    _require_told(run, found)
    require_trained(run, found)
    run.denoiser.require_conditions(found, n)
    for name, values in found.items():
        shape = (n, *run.condition_shapes.get(name, values.shape[1:]))
        require(tuple(values.shape) == shape, f"{name} shape", tuple(values.shape), f"{shape}, as in training")
    return found


def _single(value: Any) -> Any:
    """Return a condition in the precision of the network that is told it."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _require_told(run: Run, conditions: Mapping[str, Any]) -> None:
    """Refuse to leave out a condition other than classes, which a network cannot do without."""
    for name in run.denoiser.conditions or ():
        if name != "classes" and name not in conditions:
            raise InputError(
                f"{name}: missing, and the network of {run.workdir} is told it; give --conditions=FILE.npz with an "
                f"array {name!r}, a row for each sample"
            )


def conditions_of_examples(
    run: Run, examples: Examples, classes: Classes = None, samples: int | None = None
) -> dict[str, Tensor]:
    """Return what examples are conditioned on, or samples that are to be like them.

    Args:
        samples: number of samples: one after the other is like the next example, in an order that is mixed but always
            the same, so that a few are like all of the data, however sorted these are. None for the examples' own.
        classes: None or "data" for the labels of the examples; else as of :func:`conditions_of_samples`, and one alone
            for examples. Other conditions are always those of the examples.

    Raises:
        InputError: if the network has conditions that the examples lack, or on several classes for examples.
    """
    n = len(examples) if samples is None else samples
    order = torch.arange(n) if samples is None else random_split(len(examples), 0)[0]
    which = order[torch.arange(n) % len(examples)]
    names = list(run.denoiser.conditions or ())
    of_each = isinstance(classes, (Tensor, np.ndarray))
    of_data = not of_each and classes in (None, "", DATA)
    if not of_data and "classes" in names:
        names.remove("classes")
    for name in names:
        if name not in examples.conditions:
            raise InputError(
                f"{name}: missing in the data, and the network of {run.workdir} is told it; {_remedy(run, name)}"
            )
    found = {name: examples.conditions[name][which] for name in names}
    if of_data:
        return conditions_of_samples(run, n, found.pop("classes", None), found)
    if samples is None and not of_each and classes != NONE:
        require_classes(run, classes)
        one = len(class_numbers(classes, run.class_names, run.num_classes)) == 1  # type: ignore[arg-type]
        require(one, "classes", classes, f"one class, given which all examples are scored, {DATA!r} or {NONE!r}")
    return conditions_of_samples(run, n, classes, found)


def _remedy(run: Run, name: str) -> str:
    """Return what can be done where examples lack a condition."""
    if name != "classes":
        return f"give a file with an array {name!r}, a value for each example"
    none = f" or --classes={NONE}" if run.config.training.label_dropout else ""
    return f"give --classes=0 for one class{none}, or a file with an array 'classes'"


def require_classes(run: Run, classes: object) -> None:
    """Refuse classes for a run that has none."""
    if not run.num_classes:
        raise InputError(
            f"classes={classes!r}: the network of {run.workdir} is not told classes; leave them out, or train one with "
            "--config.network.NAME.num_classes=… on data that have them"
        )


def require_trained(run: Run, conditions: Mapping[str, Any]) -> None:
    """Refuse to leave out a class that was never left out in training."""
    dropped = bool(run.config.training.label_dropout)
    if run.num_classes and "classes" not in conditions and not dropped:
        raise InputError(
            f"classes={NONE!r}: the network of {run.workdir} was never trained without a class "
            f"(training.label_dropout=0); give --classes=0,1 or --classes={ALL}"
        )
