"""How a network is run: precision, layout, attention kernels, compiler; state and times outside stay as they are.

bfloat16 means autocast: weights are stored in float32, matrix products and convolutions are computed from bfloat16, and
what is sensitive (normalisation, softmax, the waves of the time label) in float32.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sde_diffusion.errors import require
from sde_diffusion.files import processor
from sde_diffusion.terminal import left_out

PRECISIONS = ("auto", "float32", "bfloat16")
LAYOUTS = {
    "channels_last": {4: torch.channels_last, 5: torch.channels_last_3d},
    "contiguous": {4: torch.contiguous_format, 5: torch.contiguous_format},
}
"""Formats of weights by their number of dimensions: kernels of images have 4, of volumes 5; others have one format."""
CONDITIONING = ("conditions", "num_classes", "null_class")
"""What a network says of its conditions, see :data:`~sde_diffusion.networks.layers.NETWORKS`."""


def bfloat16_pays(device: torch.device) -> bool:
    """Return whether a device multiplies in bfloat16 faster than in float32.

    CUDA from Ampere on, CPUs with AMX, and with AVX512-BF16 those of AMD. Intel's that have it leave bfloat16 to AMX:
    where that is switched off, as in many a virtual machine, they take twice as long as in float32 (see the findings).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and (_cpu_has("amx_tile") or (_cpu_has("avx512_bf16") and "AMD" in processor()))


def _cpu_has(instructions: str) -> bool:
    return bool(getattr(torch.cpu, f"_is_{instructions}_supported", bool)())


class Executed(nn.Module):
    """A network in another precision, compiled, or with plain attention: (B, *), (B,) → (B, *) in the first's dtype.

    What the network says of its conditions it says too; where that says nothing, it has no such attributes either.

    Args:
        network: the network; its parameters stay its own.
        precision: "float32" or "bfloat16".
        compiled: run it through ``torch.compile``, on CUDA with graphs.
        fused_attention: leave the choice of attention kernels to PyTorch; else matrix products and a softmax.
    """

    def __init__(self, network: nn.Module, precision: str, compiled: bool, fused_attention: bool) -> None:
        super().__init__()
        self.precision, self.fused_attention = precision, fused_attention
        self.graphs = compiled and _device(network).type == "cuda"
        if compiled:
            _make_cache()
        self.net = torch.compile(network, mode="reduce-overhead" if self.graphs else None) if compiled else network

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name) if name in CONDITIONING else super().__getattr__(name)

    def forward(self, x: Tensor, label: Tensor, **conditions: Any) -> Tensor:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        attention = nullcontext() if self.fused_attention else sdpa_kernel(SDPBackend.MATH)
        with attention, torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            out: Tensor = self.net(x, label, **conditions)
        return out.to(x.dtype, copy=self.graphs)  # the next replay of a graph overwrites what it returned


def lay_out(network: nn.Module, layout: str) -> nn.Module:
    """Put the weights of a network, and buffers, into a layout, in place; returns it.

    Args:
        network: of any number of sides: kernels over one side have one layout, over two and three each their own.
        layout: "channels_last" or "contiguous".

    Raises:
        InputError: on any other layout.
    """
    require(layout in LAYOUTS, "layout", layout, f"one of {', '.join(LAYOUTS)}")
    for tensor in chain(network.parameters(), network.buffers()):
        if tensor.dim() in LAYOUTS[layout]:
            tensor.data = tensor.data.to(memory_format=LAYOUTS[layout][tensor.dim()])
    return network


def execute(
    network: nn.Module,
    precision: str = "auto",
    compiled: bool = False,
    training: bool = False,
    *,
    layout: str = "auto",
    fused_attention: bool = True,
) -> nn.Module:
    """Return a network as it is to be run; itself, in its layout, where that is in float32 and nothing else is asked.

    Args:
        network: on its device.
        precision: "float32", "bfloat16", or "auto": bfloat16 where it pays, else float32.
        compiled: run it through ``torch.compile``; the first batch of a shape then takes minutes on a CPU.
        training: whether it is to be trained.
        layout: of its weights, which its activations follow: "channels_last", "contiguous", or "auto": as it is (the
            configuration builds channels last), but plain for training on a CPU, whose gradients are 1.02 to 1.2 times
            as fast so (see the findings); by AMX in bfloat16, of which nothing was measured, it stays as it is.
        fused_attention: let PyTorch choose a fused kernel where it has one; else matrix products and a softmax: slower,
            and deterministic on CUDA, where gradients of the fused ones need not be.

    Raises:
        InputError: on anything else.
    """
    require(precision in PRECISIONS, "precision", precision, f"one of {', '.join(PRECISIONS)}")
    require(isinstance(compiled, bool), "compile", compiled, "True or False")
    require(layout == "auto" or layout in LAYOUTS, "layout", layout, f"one of auto, {', '.join(LAYOUTS)}")
    require(isinstance(fused_attention, bool), "fused_attention", fused_attention, "True or False")
    if precision == "auto":
        precision = "bfloat16" if bfloat16_pays(_device(network)) else "float32"
    by_amx = precision == "bfloat16" and _cpu_has("amx_tile")
    if layout == "auto" and training and _device(network).type == "cpu" and not by_amx:
        layout = "contiguous"
    if layout != "auto":
        lay_out(network, layout)
    as_it_is = precision == "float32" and not compiled and fused_attention
    return network if as_it_is else Executed(network, precision, compiled, fused_attention)


def precision_of(network: object) -> str:
    """Return the precision in which a network is run."""
    return network.precision if isinstance(network, Executed) else "float32"


def _make_cache() -> None:
    """Let the compiler keep its work for this process alone where it cannot keep it for the next."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    try:
        with tempfile.TemporaryFile(dir=cache_dir()):
            return
    except OSError as error:
        left_out("the cache of the compiler", error)
    folder = os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="sde-diffusion-compiled-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
