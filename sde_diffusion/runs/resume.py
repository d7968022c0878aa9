"""Going on with the training of a run: what may change, what only if it is meant, and what makes another model."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from sde_diffusion import config as configuration
from sde_diffusion.codecs import CODECS
from sde_diffusion.codecs.base import AUTO
from sde_diffusion.errors import require
from sde_diffusion.runs.open import read_codec
from sde_diffusion.stored_config import differences, is_read, load_config, value_of
from sde_diffusion.terminal import notice
from sde_diffusion.training.settings import read_settings

FREE = (
    *("plugins", "threads", "precision", "layout", "fused_attention", "compile", "tf32"),  # how the network is run
    *("sampler.", "guidance.", "denoiser.thresholding."),  # how samples are drawn
    *("training.num_steps", "training.log_every", "training.checkpoint_every", "training.keep"),  # how long, how safely
    "training.max_skipped",
)
"""Beginnings of the keys that say nothing of what is trained, nor by which steps: they may always change."""
OF_STEPS = ("seed", "training.")
"""Beginnings of the keys that, but for the free ones, say by which steps it is trained; all others are of the model."""
LISTED = 10
"""How many keys a line names."""


def require_resumable(workdir: Path, config: ConfigDict, override: bool) -> None:
    """Refuse to go on with a run as another model; to go on by other steps too, unless that is meant.

    Where the data lie, ``data.root``, counts as of the steps: the same data may have moved.

    Args:
        config: of the training to come.
        override: take what changes the steps, and say so.

    Raises:
        InputError: names the keys, and their values as given and as stored.
    """
    stored, given = _resolved(workdir, load_config(workdir, tuple(config.plugins)), config)
    changed = [key for key in differences(stored, given) if is_read(stored, key) and is_read(given, key)]
    changed = [key for key in changed if not key.startswith(FREE)]
    steps = [key for key in changed if key.startswith(OF_STEPS) or (key.startswith("data.") and key.endswith(".root"))]
    model = [key for key in changed if key not in steps]
    text = _listed(stored, given, model)
    require(not model, "workdir", str(workdir), f"the model that is trained there, not {text}", "take another workdir")
    text = _listed(stored, given, steps)
    expected = f"the training that was begun there, not {text}"
    remedy = "to mean it give train --override (in Python override=True), or take another workdir"
    require(override or not steps, "workdir", str(workdir), expected, remedy)
    if steps:
        notice(f"{workdir}: goes on with {text}")


def _resolved(workdir: Path, stored: ConfigDict, given: ConfigDict) -> tuple[ConfigDict, ConfigDict]:
    """Return copies of two configurations of a run with the names that "auto" stands for."""
    about = read_settings(workdir)["data"]
    codec = CODECS.name_of(read_codec(workdir, about, stored))
    both = stored.copy_and_resolve_references(), given.copy_and_resolve_references()
    for config in both:
        config.network.name = configuration.network_name(config, tuple(about["shape"]))
        if config.codec.name == AUTO:
            config.codec.name = codec
    return both


def _listed(stored: ConfigDict, given: ConfigDict, keys: list[str]) -> str:
    parts = [f"{key}={value_of(given, key)!r} (stored {value_of(stored, key)!r})" for key in keys[:LISTED]]
    return ", ".join(parts) + (f" and {len(keys) - LISTED} more" if len(keys) > LISTED else "")
