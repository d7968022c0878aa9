"""Aliases that every floor shares."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sde_diffusion.levels import NoiseLevel

NoiseFn = Callable[[Tensor, NoiseLevel, NoiseLevel], Tensor]
"""``noise(x, t, s)``: standard normal noise shaped like ``x`` for a step from level ``t`` to ``s``.

Where the two are one and the same, the noise belongs to no interval: it is fresh at every call. What was returned
belongs to the caller."""

Callback = Callable[[int, Tensor, Tensor], None]
"""``callback(step, t, x)``: sees the state ``x`` (B, *) after ``step`` steps and the time of each sample, ``t`` (B,) in
float64 (float32 on MPS) on ``x``'s device; step 0 is the start, time 0 the denoising step."""
