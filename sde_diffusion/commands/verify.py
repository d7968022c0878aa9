"""``sde-diffusion verify``."""

from __future__ import annotations

import functools
import math

import torch
from absl import flags
from ml_collections import ConfigDict

import samplers
from sde_diffusion.commands.flags import QUIET
from sde_diffusion.evaluation.likelihood_certificate import certify_likelihood
from sde_diffusion.evaluation.verification import ALLOWED, FALSE_ALARM, Certificate, certify
from sde_diffusion.sdes import SDE, SDES
from sde_diffusion.terminal import progress, say

COLUMNS = "{:18} {:8} {:>8} {:>8} {:>9} {:>9} {:>9} {:>8} {:>8}  {}"


def define_flags(values: flags.FlagValues) -> None:
    """Define the flags of this command."""
    flags.DEFINE_string("sampler", "", "Certify this sampler only.", flag_values=values)
    flags.DEFINE_string("sde", "", "Certify on this SDE only.", flag_values=values)
    alarm = f"of correct code one run in {1.0 / FALSE_ALARM:.0f} fails, whatever the seed"
    flags.DEFINE_integer("seed", 0, f"Seed of what is random; {alarm}.", flag_values=values)
    flags.DEFINE_boolean("quiet", False, QUIET, flag_values=values)


def table_row(name: str, sde: str, c: Certificate) -> str:
    """Return one line of the report."""
    declared = "adaptive" if c.declared is None else f"{c.declared:g}"
    measured = "exact" if c.error < 1e-9 or math.isinf(c.measured) else f"{c.measured:.2f}"
    m = c.mixture
    verdict = "; ".join(c.failures) or "ok"
    numbers = f"{c.error:.1e}", f"{m.weight_error:.4f}", *(f"{p:.2g}" for p in (m.weights_p, m.mean_p, m.spread_p))
    return COLUMNS.format(name, sde, declared, measured, *numbers, verdict).rstrip()


def run(values: flags.FlagValues, config: ConfigDict) -> int:
    """Measure, print measured next to declared, return 1 if anything failed."""
    names = [values.sampler] if values.sampler else samplers.names()
    sde_names = [values.sde] if values.sde else SDES.names()
    sdes = {name: SDES.build(name) for name in sde_names}
    pairs = [(name, sde) for name in names for sde in sde_names]
    options = {name: samplers.config(name) for name in names}

    say("Gaussian data: weak order declared and measured, error at the finest step in standard deviations.")
    failed, checks = 0, len(pairs) + (0 if values.sampler else len(sde_names))
    share = FALSE_ALARM / checks
    say("Three-mode mixture: largest weight error; p-values of weights, mean and spread, which finite steps may bias")
    say(f"by {ALLOWED:g} of 1, of a standard deviation and of a mean square.")
    say(f"Correct code fails with a probability of {FALSE_ALARM:g}, whatever the seed: by a p below {share / 3:.1g}.\n")
    header = ("sampler", "sde", "declared", "measured", "error", "weights", "p weights", "p mean", "p spread")
    say(COLUMNS.format(*header, "verdict"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors of a few kilobytes: more threads only wait for each other
    try:
        with progress(len(pairs), "check", "verify", values.quiet) as bar:
            for name, sde in pairs:
                bar.set_description(f"{name} on {sde}")
                build = functools.partial(samplers.build, name)
                certificate = certify(build, options[name], sdes[sde], config.seed, share)
                failed += bool(certificate.failures)
                bar.write(table_row(name, sde, certificate))
                bar.update()
        if not values.sampler:
            failed += _likelihoods({name: sdes[name] for name in sde_names}, config.seed, share)
    finally:
        torch.set_num_threads(threads)
    say(f"\n{checks - failed} of {checks} certified" + (f", {failed} FAILED" if failed else ""))
    return 1 if failed else 0


def _likelihoods(sdes: dict[str, SDE], seed: int, false_alarm: float) -> int:
    """Print the certificates of the likelihood; returns how many failed."""
    say("\nLikelihood of a correlated Gaussian: largest error of log p in nats with the exact divergence at tolerance")
    say("1e-7; p-values of Hutchinson's estimates, of the prior's cost, and of −log p above the continuous bound.\n")
    say(f"{'':18} {'sde':8} {'error':>9} {'p probes':>9} {'p prior':>8} {'p bound':>8}  verdict")
    failed = 0
    for name, sde in sdes.items():
        c = certify_likelihood(sde, seed, false_alarm)
        failed += bool(c.failures)
        numbers = f"{c.error:9.1e} {c.probes_p:9.2g} {c.prior_p:8.2g} {c.bound_p:8.2g}"
        say(f"{'log_likelihood':18} {name:8} {numbers}  {'; '.join(c.failures) or 'ok'}")
    return failed
