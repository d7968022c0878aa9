"""The residual network of dense layers, for vectors and other small data.

Reference:
    K. He, X. Zhang, S. Ren, J. Sun, "Identity Mappings in Deep Residual Networks", 2016, arXiv:1603.05027.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sde_diffusion.errors import require_float, require_int
from sde_diffusion.networks.embeddings import ClassConditional, TimeEmbedding
from sde_diffusion.networks.layers import NETWORKS, require_sizes, zero_init
from sde_diffusion.ops import per_example


class DenseBlock(nn.Module):
    """h + dense₀(dropout(SiLU(dense(norm(h)) + dense(code)))): (B, width) → (B, width); dense₀ starts at zero."""

    def __init__(self, width: int, code_width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.dense_in = nn.Linear(width, width)
        self.code = nn.Linear(code_width, width)
        self.dropout = nn.Dropout(dropout)
        self.dense_out = zero_init(nn.Linear(width, width))

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        update = F.silu(self.dense_in(self.norm(h)) + self.code(code))
        out: Tensor = h + self.dense_out(self.dropout(update))
        return out


@NETWORKS.register("mlp")
class MLP(ClassConditional):
    """A time-conditioned residual network of dense layers: x (B, *shape), label (B,) → (B, *shape); zero at first.

    A class-conditional network also takes ``classes`` (B,), whole numbers from 0; without them it is unconditional.

    Args:
        shape: shape of one example, (d,) for vectors; any other is flattened.
        width: features of every layer, an even number of at least 4.
        depth: number of residual blocks, two layers each.
        dropout: probability of dropping a feature inside a block.
        embedding: how the label is read, "sinusoidal" (any label) or "fourier" (label log σ).
        num_classes: number of classes of a class-conditional network, else 0.

    Raises:
        InputError: if an option is out of range.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 128,
        depth: int = 3,
        dropout: float = 0.0,
        embedding: str = "sinusoidal",
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        size = math.prod(require_sizes("shape", shape, "the sizes of one example, such as (2,)"))
        require_int("width", width, 4)
        require_int("depth", depth, 1)
        require_float("dropout", dropout, 0.0, 1.0)
        self.time = TimeEmbedding(embedding, width, width)
        self.embed_classes(num_classes, width)
        self.stem = nn.Linear(size, width)
        self.blocks = nn.ModuleList([DenseBlock(width, width, dropout) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = zero_init(nn.Linear(width, size))

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        code = self.add_classes(self.time(label), classes)
        h = self.stem(per_example(x))
        for block in self.blocks:
            h = block(h, code)
        out: Tensor = self.head(F.silu(self.norm(h)))
        return out.reshape(x.shape)
