"""A sampler of one's own, as a user writes it."""

from dataclasses import dataclass

import samplers


@samplers.register("own_sampler")
@dataclass(frozen=True, kw_only=True)
class OwnSampler(samplers.DDIM):
    """DDIM on equal steps of log SNR."""

    reference = "Nobody 2026"
    grid: str = "log_snr"
