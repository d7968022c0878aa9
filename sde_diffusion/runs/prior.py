"""Whether the noise at T has drowned the data, as sampling presumes."""

from __future__ import annotations

import torch
from torch import Tensor

from sde_diffusion.bounds import prior_kl
from sde_diffusion.sde import SDE
from sde_diffusion.terminal import notice

ALLOWED = 0.01
"""KL(p_T ‖ prior) in nats a dimension that goes without a word; usual SDEs on data of unit size have 2e-5 to 5e-3."""


def warn_of_prior(sde: SDE, z: Tensor) -> None:
    """Say in one line if sampling would start from another law than that of the noisy data at T.

    Args:
        z: examples in model space, (B, *); without any, data of unit size, ``torch.ones(1, *shape)``.
    """
    share = float(prior_kl(sde, z).mean()) / z[0].numel()
    if share > ALLOWED:
        alpha = float(sde.alpha(torch.tensor(sde.T, dtype=torch.float64)))
        notice(
            f"sde: at T={sde.T:g} the noisy data are up to {share:.2g} nats a dimension away from the noise that "
            f"samples start from (α={alpha:.3g} of them is left, σ={sde.prior_std:.3g}): samples will be of another "
            "law; take more noise at T (beta_max, sigma_max, more betas), or smaller data (config.codec)"
        )
