"""Runs from Python: open or train one, draw from it, score, sweep and report it; the commands call the same."""

from sde_diffusion.runs.fitting import fit
from sde_diffusion.runs.open import open_run
from sde_diffusion.runs.run import Run

__all__ = ["Run", "fit", "open_run"]
