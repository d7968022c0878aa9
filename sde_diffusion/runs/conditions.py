"""What samples and examples of a run are conditioned on: classes by number or name, or what the data have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde_diffusion.data import Examples, random_split
from sde_diffusion.errors import InputError, require
from sde_diffusion.registry import hint

if TYPE_CHECKING:
    from sde_diffusion.runs.run import Run

DATA, NONE, ALL = "data", "none", "all"
"""In place of classes: those of the data, no class, every class."""
Classes = int | str | Sequence[int | str] | Tensor | None


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
        known = f"a class from 0 to {count - 1}" + (f", or one of {', '.join(names)}" if names else "")
        near = hint(text, list(names)) if names else ""
        whole = text.isdecimal() and int(text) < count
        require(whole, "classes", part, known, near.strip("; "))
        found.append(int(text))
    require(len(found) > 0, "classes", classes, "at least one class")
    return found


def conditions_of_samples(run: Run, n: int, classes: Classes, others: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``n`` samples are conditioned on, one row a sample.

    Args:
        classes: numbers or names of classes, which take turns; a tensor (n,) with that of each; None or "none" for no
            class.
        others: other conditions of the network by name, (n, *) each.

    Raises:
        InputError: on conditions that the run does not take, that are missing, of another length or out of range.
    """
    found = dict(others)
    if isinstance(classes, Tensor):
        found["classes"] = classes
    elif classes not in (None, "", NONE):
        require_classes(run, classes)
        numbers = class_numbers(classes, run.class_names, run.num_classes)
        found["classes"] = torch.tensor(numbers)[torch.arange(n) % len(numbers)]
    require_trained(run, found)
    run.denoiser.require_conditions(found, n)
    return found


def conditions_of_examples(
    run: Run, examples: Examples, classes: Classes = None, samples: int | None = None
) -> dict[str, Tensor]:
    """Return what examples are conditioned on, or samples that are to be like them.

    Args:
        samples: number of samples: one after the other is like the next example, in an order that is mixed but always
            the same, so that a few are like all of the data, however sorted these are. None for the examples' own.
        classes: None or "data" for the conditions of the examples; else as of :func:`conditions_of_samples`.

    Raises:
        InputError: if the network has conditions that the examples lack.
    """
    n = len(examples) if samples is None else samples
    if isinstance(classes, Tensor) or classes not in (None, "", DATA):
        return conditions_of_samples(run, n, classes, {})
    order = torch.arange(n) if samples is None else random_split(len(examples), 0)[0]
    which = order[torch.arange(n) % len(examples)]
    names = run.denoiser.conditions or ()
    for name in names:
        remedy = "give --classes=none, or one class" if name == "classes" else "add them to the data"
        expected = f"{name} of the examples, on which the run's network is conditioned"
        require(name in examples.conditions, name, "missing in the data", expected, remedy)
    found = {name: examples.conditions[name][which] for name in names}
    run.denoiser.require_conditions(found, n)
    return found


def require_classes(run: Run, classes: object) -> None:
    """Refuse classes for a run that has none."""
    if not run.num_classes:
        raise InputError(
            f"classes={classes!r}: the network of {run.workdir} is not told classes; train one with "
            "--config.network.NAME.num_classes=… on data that have them, or leave them out"
        )


def require_trained(run: Run, conditions: Mapping[str, Any]) -> None:
    """Refuse to leave out a class that was never left out in training."""
    dropped = bool(run.config.training.label_dropout)
    if run.num_classes and "classes" not in conditions and not dropped:
        raise InputError(
            f"classes={NONE!r}: the network of {run.workdir} was never trained without a class "
            f"(training.label_dropout=0); give --classes=0,1 or --classes={ALL}"
        )
