"""``sde-diffusion report``: one page of a run, or of several side by side."""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from sde_diffusion.commands.flags import define_pretrained_flag
from sde_diffusion.errors import require
from sde_diffusion.evaluation.report import write_report
from sde_diffusion.terminal import say


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=values)
    define_pretrained_flag(values)
    flags.DEFINE_list("compare", [], "Folders of further runs, laid beside it.", flag_values=values)
    flags.DEFINE_boolean("quiet", False, "Print nothing.", flag_values=values)


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Write the page and its figures."""
    folders = list(dict.fromkeys(([values.workdir] if values.workdir else []) + values.compare))
    require(len(folders) > 0, "workdir", values.workdir, "the folder of a run", "give --workdir=runs/NAME")
    require(not values.compare or len(folders) > 1, "compare", ",".join(values.compare), "two different runs at least")
    page, *figures = write_report([Path(folder) for folder in folders])
    size = page.stat().st_size / 1e6
    say(f"wrote {page} ({size:.1f} MB), and {len(figures)} files in {page.with_suffix('')}", values.quiet)
