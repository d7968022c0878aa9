"""How a network is run: in bfloat16 where that pays, compiled if asked for; state and times outside stay as they are.

bfloat16 means autocast: weights are stored in float32, matrix products and convolutions are computed from bfloat16, and
what is sensitive (normalisation, softmax, the waves of the time label) in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sde_diffusion.errors import require

PRECISIONS = ("auto", "float32", "bfloat16")


def bfloat16_pays(device: torch.device) -> bool:
    """Return whether a device multiplies in bfloat16 faster than in float32: CUDA from Ampere on, CPUs with AMX."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without AMX, AVX512's dot products gain little, and emulation costs much (see the findings).
    return device.type == "cpu" and bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


class Executed(nn.Module):
    """A network in another precision, or compiled: x (B, *), label (B,) → (B, *) in ``x``'s dtype.

    Args:
        network: the network; its parameters stay its own.
        precision: "float32" or "bfloat16".
        compiled: run it through ``torch.compile``, on CUDA with graphs.
    """

    def __init__(self, network: nn.Module, precision: str, compiled: bool) -> None:
        super().__init__()
        self.precision = precision
        self.graphs = compiled and _device(network).type == "cuda"
        self.net = torch.compile(network, mode="reduce-overhead" if self.graphs else None) if compiled else network

    def forward(self, x: Tensor, label: Tensor, **conditioning: Any) -> Tensor:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            out: Tensor = self.net(x, label, **conditioning)
        return out.to(x.dtype, copy=self.graphs)  # the next replay of a graph overwrites what it returned


def execute(network: nn.Module, precision: str = "auto", compiled: bool = False, training: bool = False) -> nn.Module:
    """Return a network as it is to be run; itself where that is in float32 and not compiled.

    Args:
        network: on its device.
        precision: "float32", "bfloat16", or "auto": bfloat16 where it pays, else float32.
        compiled: run it through ``torch.compile``; the first batch of a shape then takes minutes on a CPU.
        training: whether it is to be trained, for which float32 on a CPU takes the plain layout instead of channels
            last: gradients are 1.02 to 1.2 times as fast in it (see the findings).

    Raises:
        InputError: on anything else.
    """
    require(precision in PRECISIONS, "precision", precision, f"one of {', '.join(PRECISIONS)}")
    require(isinstance(compiled, bool), "compile", compiled, "True or False")
    if precision == "auto":
        precision = "bfloat16" if bfloat16_pays(_device(network)) else "float32"
    if training and precision == "float32" and _device(network).type == "cpu":
        network.to(memory_format=torch.contiguous_format)
    return Executed(network, precision, compiled) if compiled or precision != "float32" else network


def precision_of(network: object) -> str:
    """Return the precision in which a network is run."""
    return network.precision if isinstance(network, Executed) else "float32"


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
