"""``sde-diffusion likelihood``."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from absl import flags
from ml_collections import ConfigDict

from sde_diffusion import config as configuration
from sde_diffusion.commands.flags import define_pretrained_flag, define_run_flags, pick_device, require_workdir, say
from sde_diffusion.commands.sample import Run, load_run
from sde_diffusion.data import Dataset
from sde_diffusion.data.image_folder import load_picture
from sde_diffusion.errors import require, require_float, require_int
from sde_diffusion.evaluation import bits
from sde_diffusion.evaluation.figures import save_bound
from sde_diffusion.evaluation.scoring import Scorer, Scores, ScoringOptions, read_state, text_of
from sde_diffusion.files import provenance
from sde_diffusion.locks import one_writer
from sde_diffusion.records import read_record, write_record

DEFAULT_TOLERANCE = 1e-4
"""Of a few given pictures, whose spread says nothing about a mean."""
CAVEAT = (
    "Likelihood is no proof of belonging: models are known to give simpler images of another kind a higher likelihood "
    "than their own (Nalisnick et al. 2019, arXiv:1810.09136)."
)


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values)
    define_pretrained_flag(values)
    d = ScoringOptions()
    flags.DEFINE_enum("split", "test", ["test", "train"], "Split of the data set to score.", flag_values=values)
    flags.DEFINE_integer("num_images", 0, "Score the first so many images; 0: all.", flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "Images at a time; does not change their numbers.", flag_values=values)
    flags.DEFINE_string("against", "", "Also score this data set; say how well they separate.", flag_values=values)
    flags.DEFINE_multi_string("image", [], "Score these picture files instead of the data set.", flag_values=values)
    flags.DEFINE_string(
        "tolerance",
        "auto",
        "Of the ODE solver; 'auto' keeps its error below a tenth of the statistical error.",
        flag_values=values,
    )
    flags.DEFINE_string("divergence", d.divergence, "'hutchinson' (random probes) or 'exact'.", flag_values=values)
    flags.DEFINE_integer("probes", d.probes, "Random probes an image.", flag_values=values)
    flags.DEFINE_string("probe_law", d.probe_law, "'rademacher' or 'gaussian'.", flag_values=values)
    flags.DEFINE_integer(
        "dequantisations",
        d.dequantisations,
        "Dequantisation draws an image; importance-weighted too with --divergence=exact.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "t_min",
        d.t_min,
        "Start of flow and bounds; 0: 1e-5 or the network's first time, and bounds at half a grey level's noise.",
        flag_values=values,
    )
    flags.DEFINE_integer("bound_draws", d.bound_draws, "Evaluations of the continuous bound.", flag_values=values)
    flags.DEFINE_integer("bound_steps", d.bound_steps, "Steps of the discrete bound.", flag_values=values)
    flags.DEFINE_string(
        "bound_grid",
        d.bound_grid,
        "Grid of the discrete bound; DDPM's: 'indices', 1000 steps, t_min 0.001.",
        flag_values=values,
    )
    flags.DEFINE_string("variance", d.variance, "Reverse variance of the discrete bound.", flag_values=values)


def _options(values: flags.FlagValues) -> ScoringOptions:
    names = [name for name in asdict(ScoringOptions()) if name != "tolerance"]
    try:
        tolerance = 0.0 if values.tolerance == "auto" else float(values.tolerance)
    except ValueError:
        tolerance = math.nan
    if values.tolerance != "auto":
        require_float("tolerance", tolerance, 0.0, open_low=True, remedy="or 'auto'")
    return ScoringOptions(tolerance=tolerance, **{name: getattr(values, name) for name in names})


def scorable(run: Run, config: ConfigDict) -> Run:
    """Return a run whose likelihood is computed in float32, unless ``config.precision`` names another."""
    return replace(run, denoiser=run.float32) if config.precision == "auto" else run


def score_split(
    workdir: Path,
    run: Run,
    dataset: Dataset,
    k: torch.Tensor,
    options: ScoringOptions,
    facts: dict[str, Any],
    *,
    stem: str = "likelihood",
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | None = None,
    quiet: bool = False,
) -> tuple[Scores, dict[str, Any]]:
    """Score images and write ``STEM.npz`` (as it goes), ``STEM.json`` and ``STEM.png`` (the curve of the bound).

    Args:
        k: the images as the data set holds them, (N, *).
        facts: what identifies them, stored with the result.

    Returns:
        The numbers of each image, and the content of the JSON.
    """
    from tqdm import tqdm

    device = device or torch.device("cpu")
    scorer = Scorer(run.denoiser, dataset, k, options, seed, device)
    key = {"checkpoint": run.digest, "seed": seed, "num_images": len(k), "options": asdict(options), **facts}
    if run.dtype != "float32":
        key["dtype"] = run.dtype
    path = workdir / f"{stem}.npz"
    with one_writer(workdir, stem), tqdm(total=len(k), unit="image", desc=stem, disable=quiet, leave=False) as progress:
        _keep_other(path, key)
        scores = scorer.score(path, key, batch_size, progress.update)
        result = bits.summary(scores, dataset, options)
        result["provenance"] = provenance(device, **key, checkpoint_folder=str(run.checkpoint), step=run.step)
        write_record(workdir / f"{stem}.json", result)
        save_bound(workdir / f"{stem}.png", result["curves"])
    return scores, result


def _keep_other(path: Path, key: dict[str, Any]) -> None:
    """Move scores that were made with other settings out of the way, under a name of their own."""
    if not path.exists():
        return
    other, _ = read_state(path)
    if other != text_of(key):
        name = hashlib.sha256(other.encode()).hexdigest()[:8]
        for suffix in (".npz", ".json", ".png"):
            if path.with_suffix(suffix).exists():
                path.with_suffix(suffix).rename(path.with_name(f"{path.stem}_{name}{suffix}"))


def run(values: flags.FlagValues, config: ConfigDict) -> int:
    """Score; returns 1 if a solve failed."""
    workdir, device = require_workdir(values), pick_device(values.device)
    options = _options(values)
    require_int("num_images", values.num_images, 0)
    require(not (values.image and values.against), "image", values.image, "no --against beside it", "run it twice")
    loaded = scorable(load_run(workdir, config, device), config)
    if values.image:
        return _score_pictures(values, loaded, options, config, device)
    dataset = configuration.build_dataset(config)
    sets = {"likelihood": dataset}
    if values.against:
        other = ConfigDict(config.to_dict())
        other.data.name, other.data.root = values.against, ""
        sets[f"likelihood_{values.against}"] = _like(configuration.build_dataset(other), dataset)

    results: dict[str, tuple[Scores, dict[str, Any]]] = {}
    for stem, data in sets.items():
        k = getattr(data, values.split)
        k = k[: values.num_images or len(k)]
        say(f"{len(k)} {values.split} images of {data.name}", values.quiet)
        results[stem] = score_split(
            workdir,
            loaded,
            data,
            k,
            options,
            {"data": data.name, "split": values.split},
            stem=stem,
            seed=config.seed,
            batch_size=values.batch_size,
            device=device,
            quiet=values.quiet,
        )
        say(f"{bits.as_text(results[stem][1])}\nwrote {stem}.json, {stem}.npz, {stem}.png in {workdir}\n", values.quiet)
    if values.against:
        inside, outside = (scores.ode.mean(axis=0) for scores, _ in results.values())
        found = bits.separation(inside, outside)
        path = workdir / f"likelihood_{values.against}.json"
        separated = {"inside": dataset.name, **asdict(found), "caveat": CAVEAT}
        write_record(path, {**read_record(path), "separation": separated})
        say(
            f"AUROC of log-likelihood, {dataset.name} above {values.against}: {found.auroc:.4f} ± "
            f"{found.std_error:.4f}\n{CAVEAT}",
            values.quiet,
        )
    return _failures({stem: scores for stem, (scores, _) in results.items()})


def _failures(results: dict[str, Scores]) -> int:
    """Print how many solves failed and why; returns the exit code."""
    failed = [(stem, i, reason) for stem, scores in results.items() for i, reason in scores.reasons.items()]
    for stem, i, reason in failed[:5]:
        say(f"FAILED {stem}, image {i}: {reason}")
    if failed:
        say(f"{len(failed)} images have no likelihood and are left out of the means; try another --tolerance")
    return 1 if failed else 0


def _like(other: Dataset, dataset: Dataset) -> Dataset:
    """Return another data set in the shape and grey levels of ``dataset``, its pictures resized where they differ."""
    if other.levels is None or dataset.levels is None or other.shape[0] != dataset.shape[0]:
        same = other.shape == dataset.shape and other.levels == dataset.levels
        expected = f"a data set like {dataset.name}: {dataset.describe()}"
        require(same, "against", other.name, expected, f"it is {other.describe()}")
        return other

    def convert(k: torch.Tensor) -> torch.Tensor:
        from torchvision.transforms.functional import resize

        x = other.scale(k)
        if other.shape != dataset.shape:
            x = resize(x, list(dataset.shape[1:]), antialias=True)
        return dataset.unscale(x)

    return Dataset(other.name, convert(other.train), convert(other.test), dataset.levels)


def _score_pictures(
    values: flags.FlagValues, loaded: Run, options: ScoringOptions, config: ConfigDict, device: torch.device
) -> int:
    """Score picture files and print a line each."""
    require(loaded.levels is not None, "image", values.image, "a run on pictures", "this one was trained on vectors")
    levels = loaded.levels or 2
    pixels = torch.stack([torch.from_numpy(load_picture(Path(f), loaded.shape)) for f in values.image])
    k = (pixels.float() * ((levels - 1) / 255)).round().to(torch.uint8)
    dataset = Dataset("pictures", k, k, levels)
    options = replace(options, tolerance=options.tolerance or DEFAULT_TOLERANCE)
    workdir = Path(values.workdir)
    names = {"files": [str(f) for f in values.image], "pixels": hashlib.sha256(k.numpy().tobytes()).hexdigest()}
    scores, _ = score_split(
        workdir,
        loaded,
        dataset,
        k,
        options,
        names,
        stem="likelihood_pictures",
        seed=config.seed,
        batch_size=values.batch_size,
        device=device,
        quiet=values.quiet,
    )
    unit = 1.0 / (math.prod(loaded.shape) * math.log(2.0))
    shift = math.log2(dataset.cell)
    say(f"{'bits/dim: ODE':>16} {'continuous':>12} {'discrete':>12}  file")
    for i, name in enumerate(values.image):
        ode = -scores.ode[:, i].mean() * unit - shift
        say(f"{ode:16.4f} {scores.continuous[i] * unit:12.4f} {scores.discrete[i] * unit:12.4f}  {name}")
    say(f"wrote likelihood_pictures.json, .npz, .png in {workdir}", values.quiet)
    return _failures({"likelihood_pictures": scores})
