"""A metric of one's own: how far apart the features' means are."""

from __future__ import annotations

from sde_diffusion.evaluation.metrics import METRICS, Comparison


@METRICS.register("own_metric")
def mean_distance(given: Comparison) -> dict[str, float]:
    """Distance of the mean features, in units of the reference's standard deviations."""
    x, y = given.samples.features.double(), given.reference.features.double()
    gap = (x.mean(dim=0) - y.mean(dim=0)) / y.std(dim=0).clamp_min(1e-6)
    return {"mean distance": float(gap.square().mean().sqrt())}
