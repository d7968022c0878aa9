"""``sde-diffusion samplers``."""

from __future__ import annotations

from absl import flags
from ml_collections import ConfigDict

import samplers

HEADER = ("name", "order", "NFE a step", "stochastic", "valid SDEs", "reference")


def define_flags(values: flags.FlagValues) -> None:
    """This command has no flags of its own."""


def rows() -> list[tuple[str, ...]]:
    """Return the table of registered samplers with their default options, without the header."""
    table: list[tuple[str, ...]] = []
    for name in samplers.names():
        sampler = samplers.build(name)
        order = "adaptive" if sampler.order is None else f"{sampler.order:g}"
        nfe = "adaptive" if sampler.nfe_per_step is None else str(sampler.nfe_per_step)
        table.append((name, order, nfe, "yes" if sampler.stochastic else "no", sampler.valid_sdes, sampler.reference))
    return table


def markdown() -> str:
    """Return the table in Markdown, as the README shows it."""
    lines = [HEADER, tuple("---" for _ in HEADER), *rows()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def run(values: flags.FlagValues, config: ConfigDict) -> None:
    """Print the table."""
    table = [HEADER, *rows()]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
