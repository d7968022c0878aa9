"""``sde-diffusion likelihood``."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from sde_diffusion import config as configuration
from sde_diffusion.commands.flags import define_pretrained_flag, define_run_flags, open_configured
from sde_diffusion.errors import legible, require, require_float, require_int
from sde_diffusion.evaluation import bits
from sde_diffusion.evaluation.scoring import ScoringOptions
from sde_diffusion.evaluation.uncertainty import plus_minus
from sde_diffusion.runs.run import Run
from sde_diffusion.runs.score import CAVEAT, Scored, like, score_pictures, score_rows, separate
from sde_diffusion.stored_config import complete
from sde_diffusion.terminal import say

PRINTED = 20
"""Rows of a file that are few enough to print a line each."""


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    define_run_flags(values)
    define_pretrained_flag(values)
    d = ScoringOptions()
    flags.DEFINE_enum("split", "test", ["test", "train"], "Split of the data set to score.", flag_values=values)
    flags.DEFINE_integer("num_samples", 0, "Score the first so many examples; 0: all.", flag_values=values)
    flags.DEFINE_alias("num_images", "num_samples", flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "Examples at a time; does not change their numbers.", flag_values=values)
    flags.DEFINE_string("data", "", "Score the rows of this .npz file instead of the data set.", flag_values=values)
    flags.DEFINE_string(
        "classes",
        "",
        "Of a run with classes, given which: 'data' (their labels, the default), 'none', or one class.",
        flag_values=values,
    )
    flags.DEFINE_string("against", "", "Also score this data set; say how well they separate.", flag_values=values)
    flags.DEFINE_multi_string("image", [], "Score these picture files instead of the data set.", flag_values=values)
    flags.DEFINE_string(
        "tolerance",
        "auto",
        "Of the ODE solver; 'auto' keeps its error below a tenth of the statistical error.",
        flag_values=values,
    )
    flags.DEFINE_string("divergence", d.divergence, "'hutchinson' (random probes) or 'exact'.", flag_values=values)
    flags.DEFINE_integer("probes", d.probes, "Random probes an example.", flag_values=values)
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


def run(values: flags.FlagValues, config: ConfigDict) -> int:
    """Score; returns 1 if a solve failed."""
    options = _options(values)
    require_int("num_samples", values.num_samples, 0)
    asked = [name for name in ("image", "data", "against") if getattr(values, name)]
    only = "one of --image, --data and --against"
    require(len(asked) < 2, "flags", " ".join(f"--{name}" for name in asked), only, "run it twice")
    opened = open_configured(values, config)
    if values.image:
        return _failures([_pictures(values, opened, options)])
    return _failures([_rows(values, opened, options)] if values.data else _splits(values, opened, options))


def _splits(values: flags.FlagValues, run: Run, options: ScoringOptions) -> list[Scored]:
    """Score the run's data, and those that they are to be told from."""
    sets = {"likelihood": run.dataset}
    if values.against:
        other = complete(run.config)
        other.data.name, other.data.root = values.against, ""
        sets[f"likelihood_{values.against}"] = like(configuration.build_dataset(other), run)
    found = []
    for stem, data in sets.items():
        count = len(data.split(values.split))
        say(f"{min(values.num_samples or count, count)} {values.split} {data.noun} of {data.name}", values.quiet)
        how: dict[str, Any] = {"num_examples": values.num_samples, "options": options, **_how(values)}
        found.append(run.score(values.split, data=data, stem=stem, **how))
        _tell(run, found[-1])
    if values.against:
        apart = separate(run, found[0], found[1])
        found_apart = plus_minus(apart.auroc, apart.std_error, ".4f", ".4f")
        about = f"AUROC of log-likelihood, {run.dataset.name} above {values.against}"
        say(f"{about}: {found_apart} (95 %)\n{CAVEAT}")
    return found


def _how(values: flags.FlagValues) -> dict[str, Any]:
    return {"classes": values.classes or None, "batch_size": values.batch_size, "quiet": values.quiet}


def _tell(run: Run, found: Scored) -> None:
    say(f"{bits.as_text(found.summary)}\n{_written(run, found)}\n")


def _written(run: Run, found: Scored) -> str:
    names = [f"{found.stem}{suffix}" for suffix in (".json", ".npz", ".png")]
    return f"wrote {', '.join(name for name in names if (run.workdir / name).exists())} in {run.workdir}"


def _rows(values: flags.FlagValues, run: Run, options: ScoringOptions) -> Scored:
    """Score the rows of a file; of a few of them print a line each."""
    found = score_rows(run, Path(values.data), options, **_how(values))
    log_p = found.scores.ode.mean(axis=0)
    if len(log_p) <= PRINTED:
        say(f"{'row':>6} {'log p, nats':>14}")
        for i, value in enumerate(log_p):
            say(f"{i:6} {value:14.4f}")
    _tell(run, found)
    return found


def _pictures(values: flags.FlagValues, run: Run, options: ScoringOptions) -> Scored:
    """Score picture files and print a line each."""
    found, rows = score_pictures(run, values.image, options, **_how(values))
    say(f"{'bits/dim: ODE':>16} {'continuous':>12} {'discrete':>12}  file")
    for (ode, continuous, discrete), name in zip(rows, values.image, strict=True):
        say(f"{ode:16.4f} {continuous:12.4f} {discrete:12.4f}  {legible(name)}")
    say(_written(run, found))
    return found


def _failures(found: list[Scored]) -> int:
    """Print how many solves failed and why; returns the exit code."""
    failed = [(scored.stem, i, reason) for scored in found for i, reason in scored.scores.reasons.items()]
    for stem, i, reason in failed[:5]:
        say(f"FAILED {stem}, example {i}: {reason}")
    if failed:
        say(f"{len(failed)} examples have no likelihood and are left out of the means; try another --tolerance")
    return 1 if failed else 0
