"""The NCSN++ of large pictures, with skips of input and output: a second statement of it, whose checkpoints are read.

Written from the paper's description (Song et al. 2021, arXiv:2011.13456, Appendix H, after StyleGAN-2's generator and
discriminator), as one pass over numbered modules that makes each weight when it first meets it, in the names and
shapes of the authors' checkpoints. It shares no code with the network.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.networks import NETWORKS

SIGMA_MIN, SIGMA_MAX = 0.01, 378.0


class Stated:
    """A forward pass over numbered modules; weights are random, of unit gain, and kept by their names."""

    def __init__(self, inputs: str, outputs: str, mults: tuple[int, ...], blocks: int, size: int) -> None:
        self.inputs, self.outputs, self.mults, self.blocks, self.size = inputs, outputs, mults, blocks, size
        self.width, self.attended = 16, (size // 2,)
        self.weights: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)

    def next(self) -> int:
        """Go on to the next module; return its number."""
        self.number += 1
        return self.number

    def weight(self, name: str, *shape: int) -> Tensor:
        key = f"all_modules.{self.number}.{name}"
        if key not in self.weights:
            gain = 1.0 if len(shape) == 1 else 1.0 / math.sqrt(math.prod(shape[1:]))
            self.weights[key] = gain * torch.randn(shape, generator=self.generator) + (name.startswith("GroupN"))
        return self.weights[key]

    def conv(self, x: Tensor, out: int, name: str = "", side: int = 3, stride: int = 1) -> Tensor:
        weight = self.weight(f"{name}weight", out, x.shape[1], side, side)
        return F.conv2d(x, weight, self.weight(f"{name}bias", out), stride, side // 2 if stride == 1 else 0)

    def norm(self, x: Tensor, name: str = "") -> Tensor:
        c = x.shape[1]
        return F.group_norm(x, min(c // 4, 32), self.weight(f"{name}weight", c), self.weight(f"{name}bias", c), 1e-6)

    def dense(self, x: Tensor, out: int, name: str = "") -> Tensor:
        return F.linear(x, self.weight(f"{name}weight", out, x.shape[1]), self.weight(f"{name}bias", out))

    def block(self, x: Tensor, code: Tensor, out: int, resample: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        self.next()
        h = F.silu(self.norm(x, "GroupNorm_0."))
        if resample is not None:
            h, x = resample(h), resample(x)
        h = self.conv(h, out, "Conv_0.") + self.dense(F.silu(code), out, "Dense_0.")[:, :, None, None]
        h = self.conv(F.silu(self.norm(h, "GroupNorm_1.")), out, "Conv_1.")
        if resample is not None or x.shape[1] != out:
            x = self.conv(x, out, "Conv_2.", side=1)
        return (x + h) / math.sqrt(2.0)

    def attention(self, x: Tensor) -> Tensor:
        self.next()
        c, pixels = x.shape[1], self.norm(x, "GroupNorm_0.").flatten(2)

        def mixed(y: Tensor, i: int) -> Tensor:
            return (
                torch.einsum("bcp,cd->bdp", y, self.weight(f"NIN_{i}.W", c, c)) + self.weight(f"NIN_{i}.b", c)[:, None]
            )

        q, k, v = (mixed(pixels, i) for i in range(3))
        weights = torch.softmax(torch.einsum("bcp,bcr->bpr", q, k) / math.sqrt(c), dim=2)
        return (x + mixed(torch.einsum("bpr,bcr->bcp", weights, v), 3).view_as(x)) / math.sqrt(2.0)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The score of pictures in [0, 1] with noise σ."""
        self.number, pixels = -1, x.shape[1]
        self.next()
        phase = sigma.log()[:, None] * 16.0 * self.weight("W", self.width) * 2.0 * math.pi
        code = torch.cat([phase.sin(), phase.cos()], dim=1)
        for activate in (lambda y: y, F.silu):
            self.next()
            code = self.dense(activate(code), 4 * self.width)
        x = picture = 2.0 * x - 1.0
        self.next()
        states = [self.conv(x, self.width)]
        for level, mult in enumerate(self.mults):
            for _ in range(self.blocks):
                h = self.block(states[-1], code, mult * self.width)
                states.append(self.attention(h) if h.shape[-1] in self.attended else h)
            if level + 1 < len(self.mults):
                h = self.block(states[-1], code, mult * self.width, fir_halved)
                h, picture = self.with_input(h, picture)
                states.append(h)
        h = self.block(states[-1], code, states[-1].shape[1])
        h = self.block(self.attention(h), code, h.shape[1])
        return self.way_up(h, states, code, pixels) / sigma[:, None, None, None]

    def with_input(self, h: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        if self.inputs == "none":
            return h, picture
        self.next()
        if self.inputs == "residual":
            h = (self.conv(fir_blurred(picture), h.shape[1], "Conv2d_0.", stride=2) + h) / math.sqrt(2.0)
            return h, h
        self.next()  # the one before halved the picture
        picture = fir_halved(picture)
        return self.conv(picture, h.shape[1], "Conv_0.", side=1) + h, picture

    def way_up(self, h: Tensor, states: list[Tensor], code: Tensor, pixels: int) -> Tensor:
        picture = None
        for level in reversed(range(len(self.mults))):
            for _ in range(self.blocks + 1):
                h = self.block(torch.cat([h, states.pop()], dim=1), code, self.mults[level] * self.width)
            h = self.attention(h) if h.shape[-1] in self.attended else h
            if self.outputs == "output_skip" or level == 0:
                if picture is not None:
                    self.next()  # doubles it
                    picture = fir_doubled(picture)
                self.next()
                seen = F.silu(self.norm(h))
                self.next()
                seen = self.conv(seen, pixels)
                picture = seen if picture is None else picture + seen
            h = self.block(h, code, h.shape[1], fir_doubled) if level else h
        assert not states
        assert picture is not None
        return picture


def kernel(channels: int) -> Tensor:
    side = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
    return torch.outer(side, side).expand(channels, 1, 4, 4)


def fir_blurred(x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (2, 2, 2, 2)), kernel(x.shape[1]), groups=x.shape[1])


def fir_halved(x: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel(x.shape[1]), groups=x.shape[1])[:, :, ::2, ::2]


def fir_doubled(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    spread = torch.zeros(b, c, 2 * h, 2 * w)
    spread[:, :, ::2, ::2] = x
    return F.conv2d(F.pad(spread, (2, 1, 2, 1)), 4.0 * kernel(c), groups=c)


def description(stated: Stated) -> dict[str, Any]:
    model = {
        "name": "ncsnpp", "nonlinearity": "swish", "conditional": True, "fir": True, "fir_kernel": [1, 3, 3, 1],
        "progressive": stated.outputs, "progressive_input": stated.inputs, "progressive_combine": "sum",
        "resblock_type": "biggan", "skip_rescale": True, "embedding_type": "fourier", "scale_by_sigma": True,
        "nf": stated.width, "ch_mult": list(stated.mults), "num_res_blocks": stated.blocks, "dropout": 0.0,
        "attn_resolutions": list(stated.attended), "num_scales": 2000, "sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX,
    }  # fmt: skip
    data = {"dataset": "CelebAHQ", "image_size": stated.size, "num_channels": 3, "centered": False}
    return {"data": data, "model": model, "training": {"sde": "vesde", "continuous": True}}


def checkpoint(folder: Path, stated: Stated, **changes: Any) -> Path:
    """Write what the authors' code would have: their weights in training are twice the averaged ones."""
    names = [name for name in stated.weights if name != "all_modules.0.W"]
    model = {f"module.{name}": 2.0 * stated.weights[name] for name in names}
    model["module.all_modules.0.W"] = 16.0 * stated.weights["all_modules.0.W"]
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": [stated.weights[name] for name in names]}
    torch.save({"optimizer": {}, "model": model, "ema": ema, "step": 3}, folder / "checkpoint.pth")
    told = description(stated)
    told["model"].update(changes)
    (folder / "checkpoint.json").write_text(json.dumps(told))
    return folder / "checkpoint.pth"


def test_it_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    stated = Stated("residual", "none", (1, 2), blocks=1, size=8)
    stated(torch.rand(1, 3, 8, 8), torch.ones(1))
    path = checkpoint(tmp_path, stated).rename(tmp_path / "checkpoint.pt")
    assert isinstance(sd.load_pretrained(path).sde, sd.VESDE)


@pytest.mark.parametrize("mults", [(1, 2), (1, 1, 2, 2)])
@pytest.mark.parametrize(
    ("inputs", "outputs"), itertools.product(("none", "residual", "input_skip"), ("none", "output_skip"))
)
def test_scores_are_those_of_the_statement(inputs: str, outputs: str, mults: tuple[int, ...], tmp_path: Path) -> None:
    """Scores at x = 2y − 1 with noise 2σ are half of those at y with σ; in float32, to rounding."""
    stated = Stated(inputs, outputs, mults, blocks=2, size=16)
    y, sigma = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([0.02, 1.0, 200.0])
    expected = 0.5 * stated(y, sigma)
    denoiser = sd.load_pretrained(checkpoint(tmp_path, stated))
    t = (sigma.double() / SIGMA_MIN).log() / math.log(SIGMA_MAX / SIGMA_MIN)
    with torch.no_grad():
        found = denoiser(2.0 * y - 1.0, t).score
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_what_is_not_here_is_named(tmp_path: Path) -> None:
    stated = Stated("input_skip", "output_skip", (1, 2), blocks=1, size=8)
    stated(torch.rand(1, 3, 8, 8), torch.ones(1))
    for change, message in (
        ({"progressive_combine": "cat"}, "model.progressive_combine='cat': expected 'sum'"),
        ({"progressive": "residual"}, "model.progressive='residual': expected 'none' or 'output_skip'"),
        (
            {"progressive_input": "skip"},
            "model.progressive_input='skip': expected 'none' or 'residual' or 'input_skip'",
        ),
        ({"progressive": "none"}, "does not fit the network as configured"),
    ):
        with pytest.raises(sd.InputError, match=message.replace("(", r"\(")):
            sd.load_pretrained(checkpoint(tmp_path, stated, **change))
    with pytest.raises(sd.InputError, match="progressive='both': expected one of none, output_skip"):
        NETWORKS.build("ncsnpp", shape=(3, 8, 8), progressive="both")
