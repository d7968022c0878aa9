"""Scoring examples with a run: the files of a likelihood, which go on where a killed score was."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde_diffusion.codecs import GreyLevels
from sde_diffusion.data import Dataset, Examples
from sde_diffusion.data.npz import read_rows
from sde_diffusion.data.picture_files import load_pictures
from sde_diffusion.errors import require
from sde_diffusion.evaluation import bits
from sde_diffusion.evaluation.figures import save_bound
from sde_diffusion.evaluation.metrics import content_hash
from sde_diffusion.evaluation.scoring import Scorer, Scores, ScoringOptions, digest_of, read_state
from sde_diffusion.files import beside, provenance
from sde_diffusion.locks import one_writer
from sde_diffusion.records import read_record, write_record
from sde_diffusion.runs.conditions import Classes, conditions_of_examples, words
from sde_diffusion.terminal import progress

if TYPE_CHECKING:
    from sde_diffusion.runs.run import Run

DEFAULT_TOLERANCE = 1e-4
"""Of a few given pictures or rows, whose spread says nothing about a mean."""
FEW = 16
CAVEAT = (
    "Likelihood is no proof of belonging: models are known to give simpler images of another kind a higher likelihood "
    "than their own (Nalisnick et al. 2019, arXiv:1810.09136)."
)


@dataclass(frozen=True)
class Scored:
    """Likelihoods of examples.

    Attributes:
        scores: the numbers of each, in nats.
        summary: means, error budget and curves in bits/dim or nats, as in ``likelihood.json``.
        stem: what the files are called.
    """

    scores: Scores
    summary: dict[str, Any]
    stem: str


def score(
    run: Run,
    examples: Examples,
    options: ScoringOptions,
    facts: dict[str, Any],
    *,
    classes: Classes = None,
    stem: str = "likelihood",
    batch_size: int = 64,
    quiet: bool = False,
) -> Scored:
    """Score examples and write ``STEM.npz`` (as it goes), ``STEM.json`` and ``STEM.png`` (the curve of the bound).

    Args:
        examples: as the data set holds them, (N, *), with their conditions where the run has some.
        facts: what identifies them, stored with the result.
        classes: given which they are scored, as of :func:`~sde_diffusion.runs.conditions.conditions_of_examples`.

    Raises:
        InputError: if they are not of the run's shape, or the run has conditions that they lack.
    """
    given = conditions_of_examples(run, examples, classes)
    examples = Examples(examples.x, given)
    seed, shape = run.config.seed, tuple(examples.x.shape[1:])
    require(shape == run.shape, "data", shape, f"examples of shape {run.shape}, as the run was trained on")
    scorer = Scorer(run.scored, run.codec, examples, options, seed, run.device)
    key = {"checkpoint": run.digest, "seed": seed, "num_examples": len(examples), "options": asdict(options), **facts}
    key |= {"given": words(classes)} if given else {}
    key |= {"content": content_hash(examples.x, given), **({"model": run.changed} if run.changed else {})}
    dtype = replace(run, denoiser=run.scored).dtype
    if dtype != "float32":
        key["dtype"] = dtype
    path = run.workdir / f"{stem}.npz"
    unit = "image" if run.levels else "sample"
    bar = progress(len(examples), unit, stem, quiet)
    with one_writer(run.workdir, stem), bar:
        _keep_other(path, key)
        scores = scorer.score(path, key, batch_size, bar.update)
        result = bits.summary(scores, run.shape, run.levels is not None, options)
        result["provenance"] = provenance(run.device, **key, checkpoint_folder=str(run.checkpoint), step=run.step)
        write_record(run.workdir / f"{stem}.json", result)
        with beside(picture := run.workdir / f"{stem}.png"):
            save_bound(picture, result["curves"], bits.unit(result))
    return Scored(scores, result, stem)


def _keep_other(path: Path, key: dict[str, Any]) -> None:
    """Move scores that were made with other settings out of the way, under a name of their own."""
    if not path.exists():
        return
    other, _ = read_state(path)
    if other != digest_of(key):
        name = hashlib.sha256(other.encode()).hexdigest()[:8]
        for suffix in (".npz", ".json", ".png"):
            if path.with_suffix(suffix).exists():
                path.with_suffix(suffix).rename(path.with_name(f"{path.stem}_{name}{suffix}"))


def like(other: Dataset, run: Run) -> Dataset:
    """Return another data set in the shape and grey levels of a run's, its pictures resized where they differ.

    Raises:
        InputError: if they are not of one kind.
    """
    same = other.shape == run.shape and other.levels == run.levels
    if other.levels is None or run.levels is None or other.shape[0] != run.shape[0]:
        levels = f" of {run.levels} grey levels" if run.levels else ""
        expected = f"data of shape {run.shape}{levels}, as the run was trained on"
        require(same, "against", other.name, expected, f"it is {other.describe()}")
    if same:
        return other
    theirs, ours = GreyLevels(other.levels or 0), GreyLevels(run.levels or 0)

    def convert(k: Tensor) -> Tensor:
        from torchvision.transforms.functional import resize

        z, _ = theirs.encode(k)
        return ours.decode(resize(z, list(run.shape[1:]), antialias=True) if other.shape != run.shape else z)

    return replace(other, train=convert(other.train), test=convert(other.test), levels=run.levels)


def separate(run: Run, inside: Scored, outside: Scored) -> bits.Separation:
    """Say how well log-likelihood tells two data sets apart, and write it into the file of the second."""
    found = bits.separation(inside.scores.ode.mean(axis=0), outside.scores.ode.mean(axis=0))
    path = run.workdir / f"{outside.stem}.json"
    told_from = {"inside": inside.summary["provenance"]["data"], **asdict(found), "caveat": CAVEAT}
    write_record(path, {**read_record(path), "separation": told_from})
    return found


def score_rows(
    run: Run,
    path: Path,
    options: ScoringOptions,
    *,
    classes: Classes = None,
    batch_size: int = 64,
    quiet: bool = False,
) -> Scored:
    """Score the rows of an ``.npz`` file of one's own: its array ``x``, or ``test``, or the only one.

    Raises:
        InputError: if the file cannot be read, its rows are of another shape or dtype, or conditions are missing.
    """
    rows = read_rows(path, run.shape, run.levels or 256, run.columns)
    kind = "floats" if run.levels is None else f"uint8, grey levels 0 to {run.levels - 1}"
    fits = rows.x.is_floating_point() == (run.levels is None)
    require(fits, f"data='{path}': dtype", rows.x.dtype, f"{kind}, as the run was trained on")
    options = replace(options, tolerance=options.tolerance or (DEFAULT_TOLERANCE if len(rows) < FEW else 0.0))
    stem = f"likelihood_{re.sub(r'[^A-Za-z0-9_.-]+', '_', path.stem)}"
    how: dict[str, Any] = {"classes": classes, "stem": stem, "batch_size": batch_size, "quiet": quiet}
    return score(run, rows, options, {"data": path.name}, **how)


def score_pictures(
    run: Run,
    files: Sequence[str | Path],
    options: ScoringOptions,
    *,
    classes: Classes = None,
    batch_size: int = 64,
    quiet: bool = False,
) -> tuple[Scored, list[tuple[float, float, float]]]:
    """Score picture files; returns also the bits/dim of each: ODE, continuous bound, discrete bound.

    Raises:
        InputError: if the run is not one on pictures, or files cannot be read; names all of these.
    """
    remedy = "give --data=FILE.npz"
    expected = "a run on pictures, for this one is on other data"
    require(run.levels is not None, "image", [str(f) for f in files], expected, remedy)
    pixels = torch.from_numpy(load_pictures([Path(f) for f in files], run.shape))
    k = (pixels.float() * (((run.levels or 2) - 1) / 255)).round().to(torch.uint8)
    options = replace(options, tolerance=options.tolerance or DEFAULT_TOLERANCE)
    how: dict[str, Any] = {"stem": "likelihood_pictures", "batch_size": batch_size, "quiet": quiet}
    found = score(run, Examples(k), options, {"files": [str(f) for f in files]}, classes=classes, **how)
    scores, share = found.scores, -1.0 / (math.prod(run.shape) * math.log(2.0))
    figures = (scores.ode.mean(axis=0), scores.continuous, scores.discrete)
    rows = [tuple(float(values[i]) * share for values in figures) for i in range(len(k))]
    return found, rows  # type: ignore[return-value]  # three each
