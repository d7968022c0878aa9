"""Scoring examples with a run: the files of a likelihood, which go on where a killed score was."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sde_diffusion.data import Dataset
from sde_diffusion.data.image_folder import load_picture
from sde_diffusion.errors import require
from sde_diffusion.evaluation import bits
from sde_diffusion.evaluation.figures import save_bound
from sde_diffusion.evaluation.scoring import Scorer, Scores, ScoringOptions, digest_of, read_state
from sde_diffusion.files import provenance
from sde_diffusion.locks import one_writer
from sde_diffusion.records import read_record, write_record

if TYPE_CHECKING:
    from sde_diffusion.runs.run import Run

DEFAULT_TOLERANCE = 1e-4
"""Of a few given pictures, whose spread says nothing about a mean."""
CAVEAT = (
    "Likelihood is no proof of belonging: models are known to give simpler images of another kind a higher likelihood "
    "than their own (Nalisnick et al. 2019, arXiv:1810.09136)."
)


@dataclass(frozen=True)
class Scored:
    """Likelihoods of examples.

    Attributes:
        scores: the numbers of each, in nats.
        summary: means, error budget and curves in bits/dim, as in ``likelihood.json``.
        stem: what the files are called.
    """

    scores: Scores
    summary: dict[str, Any]
    stem: str


def score(
    run: Run,
    dataset: Dataset,
    k: Tensor,
    options: ScoringOptions,
    facts: dict[str, Any],
    *,
    stem: str = "likelihood",
    batch_size: int = 64,
    quiet: bool = False,
) -> Scored:
    """Score images and write ``STEM.npz`` (as it goes), ``STEM.json`` and ``STEM.png`` (the curve of the bound).

    Args:
        dataset: what the images are, for their levels.
        k: the images as the data set holds them, (N, *).
        facts: what identifies them, stored with the result.
    """
    from tqdm import tqdm

    seed = run.config.seed
    scorer = Scorer(run.scored, dataset, k, options, seed, run.device)
    key = {"checkpoint": run.digest, "seed": seed, "num_images": len(k), "options": asdict(options), **facts}
    dtype = replace(run, denoiser=run.scored).dtype
    if dtype != "float32":
        key["dtype"] = dtype
    path = run.workdir / f"{stem}.npz"
    with one_writer(run.workdir, stem), tqdm(total=len(k), unit="image", desc=stem, disable=quiet, leave=False) as bar:
        _keep_other(path, key)
        scores = scorer.score(path, key, batch_size, bar.update)
        result = bits.summary(scores, dataset, options)
        result["provenance"] = provenance(run.device, **key, checkpoint_folder=str(run.checkpoint), step=run.step)
        write_record(run.workdir / f"{stem}.json", result)
        save_bound(run.workdir / f"{stem}.png", result["curves"])
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


def like(other: Dataset, dataset: Dataset) -> Dataset:
    """Return another data set in the shape and grey levels of ``dataset``, its pictures resized where they differ.

    Raises:
        InputError: if they are not of one kind.
    """
    if other.levels is None or dataset.levels is None or other.shape[0] != dataset.shape[0]:
        same = other.shape == dataset.shape and other.levels == dataset.levels
        expected = f"a data set like {dataset.name}: {dataset.describe()}"
        require(same, "against", other.name, expected, f"it is {other.describe()}")
        return other

    def convert(k: Tensor) -> Tensor:
        from torchvision.transforms.functional import resize

        x = other.scale(k)
        if other.shape != dataset.shape:
            x = resize(x, list(dataset.shape[1:]), antialias=True)
        return dataset.unscale(x)

    return Dataset(other.name, convert(other.train), convert(other.test), dataset.levels)


def separate(run: Run, inside: Scored, outside: Scored) -> bits.Separation:
    """Say how well log-likelihood tells two data sets apart, and write it into the file of the second."""
    found = bits.separation(inside.scores.ode.mean(axis=0), outside.scores.ode.mean(axis=0))
    path = run.workdir / f"{outside.stem}.json"
    told_from = {"inside": inside.summary["provenance"]["data"], **asdict(found), "caveat": CAVEAT}
    write_record(path, {**read_record(path), "separation": told_from})
    return found


def score_pictures(
    run: Run, files: Sequence[str | Path], options: ScoringOptions, *, batch_size: int = 64, quiet: bool = False
) -> tuple[Scored, list[tuple[float, float, float]]]:
    """Score picture files; returns also the bits/dim of each: ODE, continuous bound, discrete bound.

    Raises:
        InputError: if the run is not one on pictures, or a file cannot be read.
    """
    require(run.levels is not None, "image", [str(f) for f in files], "a run on pictures", "this one is on vectors")
    levels = run.levels or 2
    pixels = torch.stack([torch.from_numpy(load_picture(Path(f), run.shape)) for f in files])
    k = (pixels.float() * ((levels - 1) / 255)).round().to(torch.uint8)
    dataset = Dataset("pictures", k, k, levels)
    options = replace(options, tolerance=options.tolerance or DEFAULT_TOLERANCE)
    facts = {"files": [str(f) for f in files], "pixels": hashlib.sha256(k.numpy().tobytes()).hexdigest()}
    found = score(run, dataset, k, options, facts, stem="likelihood_pictures", batch_size=batch_size, quiet=quiet)
    unit = 1.0 / (math.prod(run.shape) * math.log(2.0))
    shift = math.log2(dataset.cell)
    scores = found.scores
    rows = [
        (-scores.ode[:, i].mean() * unit - shift, scores.continuous[i] * unit, scores.discrete[i] * unit)
        for i in range(len(k))
    ]
    return found, rows
