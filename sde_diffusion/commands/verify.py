"""``sde-diffusion verify``."""

from __future__ import annotations

import functools
import math

import torch
from absl import flags
from ml_collections import ConfigDict

import samplers
from sde_diffusion.commands.flags import say
from sde_diffusion.evaluation.verification import Certificate, certify
from sde_diffusion.sdes import SDES

COLUMNS = "{:18} {:8} {:>8} {:>8} {:>9} {:>9} {:>8} {:>7} {:>8}  {}"


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("sampler", "", "Certify this sampler only.", flag_values=values)
    flags.DEFINE_string("sde", "", "Certify on this SDE only.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the samples on the mixture.", flag_values=values)
    flags.DEFINE_boolean("quiet", False, "No progress bar.", flag_values=values)


def table_row(name: str, sde: str, c: Certificate) -> str:
    """Return one line of the report."""
    declared = "adaptive" if c.declared is None else f"{c.declared:g}"
    measured = "exact" if c.error < 1e-9 or math.isinf(c.measured) else f"{c.measured:.2f}"
    m = c.mixture
    verdict = "; ".join(c.failures) or "ok"
    numbers = f"{c.error:.1e}", f"{m.weight_error:.4f}", f"{m.chi2_p:.3f}", f"{m.mean_z:.1f}", f"{m.spread_z:.1f}"
    return COLUMNS.format(name, sde, declared, measured, *numbers, verdict).rstrip()


def run(values: flags.FlagValues, config: ConfigDict) -> int:
    """Measure, print measured next to declared, return 1 if anything failed."""
    from tqdm import tqdm

    names = [values.sampler] if values.sampler else samplers.names()
    sde_names = [values.sde] if values.sde else SDES.names()
    sdes = {name: SDES.build(name) for name in sde_names}
    pairs = [(name, sde) for name in names for sde in sde_names]
    options = {name: samplers.config(name) for name in names}

    say("Gaussian data: weak order declared and measured, error at the finest step in standard deviations.")
    say("Three-mode mixture: largest weight error, p-value of the mode counts, |z| of mean and spread.\n")
    header = ("sampler", "sde", "declared", "measured", "error", "weights", "p", "z mean", "z spread", "verdict")
    say(COLUMNS.format(*header))
    failed = 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors of a few kilobytes: more threads only wait for each other
    try:
        with tqdm(total=len(pairs), unit="check", disable=values.quiet, leave=False) as progress:
            for name, sde in pairs:
                progress.set_description(f"{name} on {sde}")
                build = functools.partial(samplers.build, name)
                certificate = certify(build, options[name], sdes[sde], config.seed)
                failed += bool(certificate.failures)
                progress.write(table_row(name, sde, certificate))
                progress.update()
    finally:
        torch.set_num_threads(threads)
    say(f"\n{len(pairs) - failed} of {len(pairs)} certified" + (f", {failed} FAILED" if failed else ""))
    return 1 if failed else 0
