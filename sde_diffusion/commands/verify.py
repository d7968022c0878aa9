"""``sde-diffusion verify``."""

from __future__ import annotations

import functools
import math

import torch
from absl import flags
from ml_collections import ConfigDict

import samplers
from sde_diffusion.commands.flags import QUIET
from sde_diffusion.evaluation.verification import Certificate, certify, certify_likelihood
from sde_diffusion.sdes import SDE, SDES
from sde_diffusion.terminal import progress, say

COLUMNS = "{:18} {:8} {:>8} {:>8} {:>9} {:>9} {:>8} {:>7} {:>8}  {}"


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("sampler", "", "Certify this sampler only.", flag_values=values)
    flags.DEFINE_string("sde", "", "Certify on this SDE only.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the samples on the mixture.", flag_values=values)
    flags.DEFINE_boolean("quiet", False, QUIET, flag_values=values)


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
    names = [values.sampler] if values.sampler else samplers.names()
    sde_names = [values.sde] if values.sde else SDES.names()
    sdes = {name: SDES.build(name) for name in sde_names}
    pairs = [(name, sde) for name in names for sde in sde_names]
    options = {name: samplers.config(name) for name in names}

    say("Gaussian data: weak order declared and measured, error at the finest step in standard deviations.")
    say("Three-mode mixture: largest weight error, p-value of the mode counts, |z| of mean and spread.\n")
    header = ("sampler", "sde", "declared", "measured", "error", "weights", "p", "z mean", "z spread", "verdict")
    say(COLUMNS.format(*header))
    failed, checks = 0, len(pairs)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors of a few kilobytes: more threads only wait for each other
    try:
        with progress(len(pairs), "check", "verify", values.quiet) as bar:
            for name, sde in pairs:
                bar.set_description(f"{name} on {sde}")
                build = functools.partial(samplers.build, name)
                certificate = certify(build, options[name], sdes[sde], config.seed)
                failed += bool(certificate.failures)
                bar.write(table_row(name, sde, certificate))
                bar.update()
        if not values.sampler:
            checks += len(sde_names)
            failed += _likelihoods({name: sdes[name] for name in sde_names}, config.seed)
    finally:
        torch.set_num_threads(threads)
    say(f"\n{checks - failed} of {checks} certified" + (f", {failed} FAILED" if failed else ""))
    return 1 if failed else 0


def _likelihoods(sdes: dict[str, SDE], seed: int) -> int:
    """Print the certificates of the likelihood; returns how many failed."""
    say("\nLikelihood of a correlated Gaussian: largest error of log p in nats with the exact divergence at tolerance")
    say("1e-7; |z| of Hutchinson's estimates and of the prior's cost; z of −log p above the continuous bound.\n")
    say(f"{'':18} {'sde':8} {'error':>9} {'z probes':>9} {'z prior':>8} {'z bound':>8}  verdict")
    failed = 0
    for name, sde in sdes.items():
        c = certify_likelihood(sde, seed)
        failed += bool(c.failures)
        numbers = f"{c.error:9.1e} {c.probes_z:9.1f} {c.prior_gap:8.1f} {c.bound_z:8.1f}"
        say(f"{'log_likelihood':18} {name:8} {numbers}  {'; '.join(c.failures) or 'ok'}")
    return failed
