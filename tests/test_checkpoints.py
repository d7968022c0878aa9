"""Other people's .pt: networks of guided diffusion against a second statement of them; bare weights; refusals."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from safetensors.torch import save_file
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.commands.config_files import config_file
from sde_diffusion.commands.main import main
from sde_diffusion.config import build_network, default_config
from sde_diffusion.errors import InputError
from sde_diffusion.networks import UNet2D
from sde_diffusion.pretrained import read_source
from tests.test_commands import refused
from tests.test_configs import CONFIGS

SIZE, CHANNELS = 16, 32


@dataclass
class Stated:
    """The network of Dhariwal & Nichol 2021 (arXiv:2105.05233), written from its description; shares no code with ours.

    Weights are random, of unit gain, made when they are first met, by the names of the authors' checkpoints.
    """

    mults: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attended: tuple[int, ...] = (1, 2)  # levels
    heads: int = 2
    head_width: int = 0
    heads_first: bool = True
    resample_in_blocks: bool = False
    scale_shift: bool = False
    classes: int = 0
    doubled: bool = False
    weights: dict[str, Tensor] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def weight(self, name: str, *shape: int) -> Tensor:
        if name not in self.weights:
            gain = 1.0 if len(shape) == 1 else 1.0 / math.sqrt(math.prod(shape[1:]))
            self.weights[name] = gain * torch.randn(shape, generator=self.generator)
        return self.weights[name]

    def conv(self, x: Tensor, name: str, out: int, side: int = 3, stride: int = 1) -> Tensor:
        weight, bias = self.weight(f"{name}.weight", out, x.shape[1], side, side), self.weight(f"{name}.bias", out)
        return F.conv2d(x, weight, bias, stride, side // 2)

    def norm(self, x: Tensor, name: str) -> Tensor:
        c = x.shape[1]
        return F.group_norm(x, 32, 1.0 + self.weight(f"{name}.weight", c), self.weight(f"{name}.bias", c), 1e-5)

    def dense(self, x: Tensor, name: str, out: int) -> Tensor:
        return F.linear(x, self.weight(f"{name}.weight", out, x.shape[1]), self.weight(f"{name}.bias", out))

    def block(
        self, x: Tensor, name: str, code: Tensor, out: int, resample: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        h = F.silu(self.norm(x, f"{name}.in_layers.0"))
        if resample is not None:
            h, x = resample(h), resample(x)
        h = self.conv(h, f"{name}.in_layers.2", out)
        shift = self.dense(F.silu(code), f"{name}.emb_layers.1", 2 * out if self.scale_shift else out)[:, :, None, None]
        if self.scale_shift:
            scale, shift = shift.chunk(2, dim=1)
            h = self.norm(h, f"{name}.out_layers.0") * (1.0 + scale) + shift
        else:
            h = self.norm(h + shift, f"{name}.out_layers.0")
        h = self.conv(F.silu(h), f"{name}.out_layers.3", out)
        return h + (x if x.shape[1] == out else self.conv(x, f"{name}.skip_connection", out, side=1))

    def attention(self, x: Tensor, name: str) -> Tensor:
        c = x.shape[1]
        heads = c // self.head_width if self.head_width else self.heads
        seen = self.norm(x, f"{name}.norm").flatten(2)
        rows = F.conv1d(seen, self.weight(f"{name}.qkv.weight", 3 * c, c, 1), self.weight(f"{name}.qkv.bias", 3 * c))
        mixed = []
        for i in range(heads):
            d = c // heads
            starts = [3 * d * i + d * j if self.heads_first else c * j + d * i for j in range(3)]
            q, k, v = (rows[:, start : start + d] for start in starts)
            mixed.append(v @ torch.softmax(q.mT @ k / math.sqrt(d), dim=2).mT)
        weight, bias = self.weight(f"{name}.proj_out.weight", c, c, 1), self.weight(f"{name}.proj_out.bias", c)
        return x + F.conv1d(torch.cat(mixed, dim=1), weight, bias).view_as(x)

    def code(self, label: Tensor, classes: Tensor | None) -> Tensor:
        i = torch.arange(CHANNELS // 2)
        angle = label[:, None] * 10_000.0 ** (-i / (CHANNELS // 2))
        waves = torch.cat([angle.cos(), angle.sin()], dim=1)
        code = self.dense(F.silu(self.dense(waves, "time_embed.0", 4 * CHANNELS)), "time_embed.2", 4 * CHANNELS)
        return code if classes is None else code + self.weight("label_emb.weight", self.classes, 4 * CHANNELS)[classes]

    def __call__(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        pixels, widths = x.shape[1], [mult * CHANNELS for mult in self.mults]
        code, states = self.code(label, classes), [self.conv(x, "input_blocks.0.0", widths[0])]
        for level, width in enumerate(widths):
            for _ in range(self.blocks):
                name = f"input_blocks.{len(states)}"
                h = self.block(states[-1], f"{name}.0", code, width, None)
                states.append(self.attention(h, f"{name}.1") if level in self.attended else h)
            if level + 1 < len(widths):
                name = f"input_blocks.{len(states)}.0"
                half = self.resample_in_blocks
                h = states[-1]
                states.append(
                    self.block(h, name, code, width, halved) if half else self.conv(h, f"{name}.op", width, 3, 2)
                )
        h, width = states[-1], widths[-1]
        h = self.attention(self.block(h, "middle_block.0", code, width, None), "middle_block.1")
        h = self.block(h, "middle_block.2", code, width, None)
        number = 0
        for level in reversed(range(len(widths))):
            for i in range(self.blocks + 1):
                parts = iter(range(3))
                name, width = f"output_blocks.{number}", widths[level]
                h = self.block(torch.cat([h, states.pop()], dim=1), f"{name}.{next(parts)}", code, width, None)
                h = self.attention(h, f"{name}.{next(parts)}") if level in self.attended else h
                if level and i == self.blocks:
                    last = f"{name}.{next(parts)}"
                    twice = self.resample_in_blocks
                    h = (
                        self.block(h, last, code, width, doubled)
                        if twice
                        else self.conv(doubled(h), f"{last}.conv", width)
                    )
                number += 1
        return self.conv(F.silu(self.norm(h, "out.0")), "out.2", (2 if self.doubled else 1) * pixels)


def halved(x: Tensor) -> Tensor:
    return x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(4, 5))


def doubled(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def stored(stated: Stated) -> dict[str, Tensor]:
    """What is in the file: normalisations have their factors around 1."""
    norms = ("in_layers.0.weight", "out_layers.0.weight", ".norm.weight", "out.0.weight")
    return {name: tensor + 1.0 if name.endswith(norms) else tensor for name, tensor in stated.weights.items()}


def described(**options: Any) -> ConfigDict:
    config = config_file(f"{CONFIGS}/guided_diffusion.py:imagenet256")
    config.data.image_folder.image_size = SIZE
    config.network.unet2d.update(head_width=0, heads=2)
    config.network.unet2d.update(options)
    return config


NETWORKS_OF_THEIRS: dict[str, dict[str, Any]] = {
    "improved": {"scale_shift": True},
    "attention nowhere": {"attended": ()},
    "guided": {"resample_in_blocks": True, "scale_shift": True, "doubled": True, "classes": 5},
    "heads of a width": {"head_width": 16, "heads": 0},
    "queries together": {"heads_first": False, "resample_in_blocks": True},
    "twice as wide at first": {"mults": (2, 1, 2), "head_width": 16, "heads": 0, "attended": (2,), "blocks": 1},
    "one level": {"mults": (1,), "attended": (0,), "blocks": 1},
}


@pytest.mark.parametrize("name", NETWORKS_OF_THEIRS)
def test_networks_of_guided_diffusion(name: str, tmp_path: Path) -> None:
    """ε of our denoiser is the statement's, in float32 to rounding, from a file in half precision where it is one."""
    stated = Stated(**NETWORKS_OF_THEIRS[name])
    x, index = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 17, 999])
    classes = torch.tensor([0, 4, 2]) if stated.classes else None
    expected = stated(x, index.float(), classes)
    path = tmp_path / "ema_0.9999_012000.pt"
    torch.save(stored(stated), path)
    told = {"heads": stated.heads, "head_width": stated.head_width, "heads_first": stated.heads_first}
    denoiser = sd.load_pretrained(path, config=described(**told))
    with torch.no_grad():
        found = denoiser(x, (index.double() + 1.0) / 1000.0, **({} if classes is None else {"classes": classes}))
    assert (found.eps - expected[:, :3]).norm() <= 1e-5 * expected[:, :3].norm()
    if stated.doubled:
        assert found.variance_fraction is not None
        torch.testing.assert_close(found.variance_fraction, 0.5 * (expected[:, 3:] + 1.0), rtol=1e-4, atol=1e-4)


def test_a_run_of_guided_diffusion(tmp_path: Path) -> None:
    stated, path, run = Stated(doubled=True), tmp_path / "model012000.pt", tmp_path / "run"
    stated(torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1))
    torch.save(stored(stated), path)
    flags = [f"--config={CONFIGS}/guided_diffusion.py:imagenet128", f"--config.data.image_folder.image_size={SIZE}"]
    heads = ["--config.network.unet2d.heads=2"]
    assert main(["convert", f"--source={path}", f"--workdir={run}", "--quiet", *flags, *heads]) == 0
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step_00012000"]
    opened = sd.open_run(run, device="cpu")
    assert opened.config.sampler.ancestral.variance == "predicted"
    assert opened.sample(num_steps=3, n=1, quiet=True).x.shape == (1, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("size", "width", "mults", "blocks", "classes", "millions"),
    [
        (64, 192, (1, 2, 3, 4), 3, 1000, 296),
        (128, 256, (1, 1, 2, 3, 4), 2, 1000, 422),
        (256, 256, (1, 1, 2, 2, 4, 4), 2, 1000, 554),
    ],
)
def test_networks_of_the_paper_have_their_size(
    size: int, width: int, mults: tuple[int, ...], blocks: int, classes: int, millions: int
) -> None:
    """Dhariwal & Nichol 2021, arXiv:2105.05233, Table 11, which rounds to a million."""
    kinds = ["block+attention" if size >> level in (8, 16, 32) else "block" for level in range(len(mults))]
    with torch.device("meta"):
        network = UNet2D(
            (3, size, size),
            widths=[width * mult for mult in mults],
            num_blocks=blocks,
            down=kinds,
            up=kinds[::-1],
            head_width=64,
            scale_shift=True,
            num_classes=classes,
            learned_variance=True,
        )
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


def test_the_time_is_told_out_of_a_thousand() -> None:
    """Improved DDPM's 4,000 steps, of which its networks are told a quarter of the index."""
    config = config_file(f"{CONFIGS}/guided_diffusion.py:improved-cifar10")
    label = sd.labels.Index(**config.denoiser.noise_label.discrete)
    assert label(sd.DDPMChain.cosine(4000).at(1.0)) == 3999 / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("middle_block.1.qkv.weight"), "missing middle_block.1.qkv.weight"),
        (lambda w: w.update({"extra": torch.zeros(3)}), "unexpected extra"),
        (
            lambda w: w.update({"label_emb.weight": torch.zeros(5, 7)}),
            "label_emb.weight has shape (5, 7), not (5, 128)",
        ),
        (lambda w: [w.pop(k) for k in list(w) if k.startswith("output_blocks.5.")], "as many blocks on every level"),
        (lambda w: w.pop("out.2.weight"), "a classifier or an encoder"),
        (lambda w: w.update({"out.2.weight": torch.zeros(9, 32, 3, 3)}), "takes 3 channels and returns 9"),
        (
            lambda w: w.update({"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}),
            "takes 6 channels and returns 3: a network that is told a second picture (an upsampler)",
        ),
        (lambda w: w.update({"input_blocks.1.1.transformer_blocks.0.w": torch.zeros(1)}), "attention to a text"),
        (
            lambda w: w.update({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1)}),
            "latent diffusion, a network on the codes of an autoencoder",
        ),
    ],
)
def test_relatives_are_refused_for_what_they_are(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    stated, path = Stated(mults=(1, 2), blocks=2, attended=()), tmp_path / "model.pt"
    stated(torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1))
    weights = stored(stated)
    change(weights)
    torch.save(weights, path)
    with pytest.raises(InputError) as caught:
        sd.load_pretrained(path, config=described())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_shapes_do_not_tell_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stated, path = Stated(blocks=1), tmp_path / "model.pt"
    stated(torch.zeros(1, 3, SIZE, SIZE), torch.zeros(1))
    torch.save(stored(stated), path)
    line = refused(capsys, "convert", f"--source={path}", f"--workdir={tmp_path / 'run'}")
    for part in ("size of pictures", "heads of attention", "noise", "--config=configs/guided_diffusion.py:imagenet64"):
        assert part in line
    with pytest.raises(InputError, match=r"network\.name='auto': expected 'unet2d'"):
        sd.load_pretrained(path, config=default_config())
    with pytest.raises(InputError, match="heads=5: expected a divisor of"):
        sd.load_pretrained(path, config=described(heads=5))


def lucidrains(newer: bool) -> dict[str, Tensor]:
    """Names of weights in a file of theirs, of the versions before and after linear attention had memory."""
    names = ["init_conv.weight", "final_conv.weight", "mid_block1.block1.proj.weight", "downs.0.0.block1.proj.weight"]
    older = ["downs.0.2.fn.fn.to_qkv.weight", "downs.0.2.fn.norm.g"]
    names += ["downs.0.2.to_qkv.weight", "downs.0.2.mem_kv", "downs.0.2.norm.g"] if newer else older
    return {f"model.{name}": torch.zeros(2) for name in names} | {"betas": torch.zeros(10)}


@pytest.mark.parametrize("newer", [False, True])
def test_lucidrains_is_refused_for_its_parts(newer: bool, tmp_path: Path) -> None:
    path, model = tmp_path / "model-7.pt", lucidrains(newer)
    torch.save({"step": 700, "model": model, "opt": {}, "ema": {}, "scaler": None, "version": "1.9"}, path)
    with pytest.raises(InputError) as caught:
        sd.load_pretrained(path)
    for part in (
        "denoising-diffusion-pytorch",
        "normalise after their convolutions",
        "linear attention",
        "each pixel's",
    ):
        assert part in str(caught.value)
    assert ("learned keys and values" in str(caught.value)) is newer


def small(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A configuration file of a person, and random weights of its network."""
    file = folder / "mine.py"
    file.write_text(
        "from sde_diffusion.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        "    config.network.unet.channels = 8\n    config.denoiser.prediction = 'eps'\n    return config\n"
    )
    torch.manual_seed(0)
    state = build_network(config_file(str(file)), (1, 8, 8)).state_dict()
    return file, {name: torch.randn_like(tensor) for name, tensor in state.items()}


WRAPPED: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "mine.pt": torch.save,
    "mine.pth": torch.save,
    "lightning.ckpt": lambda w, p: torch.save({"state_dict": w, "global_step": 30}, p),
    "parallel.pt": lambda w, p: torch.save({f"module.{name}": tensor for name, tensor in w.items()}, p),
    "compiled.pt": lambda w, p: torch.save({f"_orig_mod.{name}": tensor for name, tensor in w.items()}, p),
    "averaged.pt": lambda w, p: torch.save({"ema": w, "model": {k: 2.0 * v for k, v in w.items()}, "step": 30}, p),
    "mine.safetensors": lambda w, p: save_file({name: tensor.contiguous() for name, tensor in w.items()}, p),
    "half.pt": lambda w, p: torch.save({name: tensor.double() for name, tensor in w.items()}, p),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_bare_weights_with_a_configuration(name: str, tmp_path: Path) -> None:
    file, weights = small(tmp_path)
    WRAPPED[name](weights, tmp_path / name)
    source = read_source(tmp_path / name, config_file(str(file)), describes=True)
    assert all(torch.equal(source.pretrained.weights[key], tensor) for key, tensor in weights.items())
    raw = source.network(averaged=False).state_dict()
    factor = 2.0 if name == "averaged.pt" else 1.0
    assert all(torch.equal(raw[key], factor * tensor) for key, tensor in weights.items())
    assert source.pretrained.step == (30 if name in ("lightning.ckpt", "averaged.pt") else 0)
    assert sd.load_pretrained(tmp_path / name, config=file).prediction == "eps"


class Runs:
    """Runs code when it is unpickled by pickle itself."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo this must not run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda w: {k: v for k, v in w.items() if k != "head.bias"},
            "does not fit network 'unet' as configured: missing",
        ),
        (lambda w: {**w, "more": torch.zeros(1)}, "unexpected more"),
        (lambda w: {**w, "head.bias": torch.zeros(7)}, "head.bias has shape (7,), not (1,)"),
        (
            lambda w: {"conv1.weight": torch.zeros(3)},
            "none of its names is one of network 'unet'; they are conv1.weight",
        ),
        (
            lambda w: {"epoch": 3, "args": "x"},
            "expected tensors by their names, alone or under 'model' or 'ema'; it has",
        ),
        (lambda w: [torch.zeros(3)], "it has list"),
        (lambda w: {"model": w, "extra": Runs()}, "system, which could run code"),
    ],
)
def test_bare_weights_that_do_not_fit(
    content: Callable[[dict[str, Tensor]], Any], message: str, tmp_path: Path
) -> None:
    file, weights = small(tmp_path)
    torch.save(content(weights), tmp_path / "mine.pt")
    with pytest.raises(InputError) as caught:
        sd.load_pretrained(tmp_path / "mine.pt", config=file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bare_weights_alone_say_what_is_needed(tmp_path: Path) -> None:
    _, weights = small(tmp_path)
    torch.save(weights, tmp_path / "mine.pt")
    with pytest.raises(InputError, match=r"no architecture in it; give --config=FILE\.py with the data, network, sde"):
        sd.load_pretrained(tmp_path / "mine.pt")
