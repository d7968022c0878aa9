"""Networks: shapes, zero start, sensitivity to every part of the input, size, meta device, bad options."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import samplers
from sde_diffusion.denoisers import Denoiser
from sde_diffusion.errors import InputError
from sde_diffusion.networks import MLP, NETWORKS, UNet
from sde_diffusion.networks.blocks import Attention, Style
from sde_diffusion.networks.embeddings import GaussianFourier, Sinusoidal
from sde_diffusion.networks.layers import GroupNorm
from sde_diffusion.networks.resampling import ConvDouble, ConvHalve, double, fir_blur, fir_double, fir_halve, halve
from sde_diffusion.sdes import VPSDE

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"shape": (2,), "width": 16, "depth": 2},
    "unet": {"shape": (1, 8, 8), "channels": 8, "num_blocks": (1,)},
    # DDPM's 32 groups need two channels each: a group of one forgets its mean, and with it the time.
    "ddpm": {"shape": (1, 8, 8), "channels": 64, "channel_mults": (1, 1), "num_blocks": 1, "attention": (4,)},
    "ddpmpp": {"shape": (1, 8, 8), "channels": 8, "channel_mults": (1, 2), "num_blocks": 1, "attention": (4,)},
    "ncsnpp": {"shape": (1, 8, 8), "channels": 8, "channel_mults": (1, 2), "num_blocks": 1, "attention": (4,)},
    "unet2d": {"shape": (1, 8, 8), "widths": (8, 16), "num_blocks": 1, "groups": 4},
}

OTHER_GRIDS: dict[str, dict[str, Any]] = {
    "series": {"shape": (2, 16), "channels": 8, "num_blocks": (1,), "attention": (16,)},
    "volumes": {"shape": (2, 4, 8, 6), "channels": 8, "num_blocks": (1,), "attention": (4,)},
}
"""Of the U-Net, which images are not all that it takes."""

LABELS = {
    "999 t": 999.0 * torch.tensor([1e-3, 0.1, 0.5, 1.0]),
    "index": torch.tensor([0.0, 1.0, 500.0, 999.0]),
    "log sigma": torch.tensor([-4.6, -1.0, 0.0, 3.9]),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def awake(net: nn.Module, std: float = 0.3) -> nn.Module:
    """Give the layers that start at zero random weights, so that the network does something."""
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():
        if not p.detach().any():
            nn.init.normal_(p, std=std, generator=generator)
    return net.eval()


def inputs(net_name: str, batch: int = 4) -> Tensor:
    return torch.randn(batch, *SMALL[net_name]["shape"], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NETWORKS.names())
def test_every_network_builds_from_its_shape_alone_and_starts_at_zero(name: str) -> None:
    net = NETWORKS.build(name, shape=SMALL[name]["shape"])
    x = inputs(name)
    out = net(x, LABELS["999 t"])
    assert out.shape == x.shape
    assert not out.any()
    assert net(x[:1], LABELS["999 t"][:1]).shape == x[:1].shape


@pytest.mark.parametrize("name", NETWORKS.names())
@pytest.mark.parametrize("kind", LABELS)
def test_output_depends_on_the_label_and_on_every_pixel(name: str, kind: str) -> None:
    net = awake(NETWORKS.build(name, **SMALL[name]))
    x = inputs(name)[:1].expand(4, *SMALL[name]["shape"])
    out = net(x, LABELS[kind])
    assert out.isfinite().all()
    for i in range(3):
        assert (out[i] - out[i + 1]).abs().max() > 1e-3, f"labels {LABELS[kind][i : i + 2]} look alike"
    one = x[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(one, LABELS[kind][:1]).sum(), one)
    assert (gradient != 0).all()


@pytest.mark.parametrize("name", NETWORKS.names())
def test_examples_do_not_see_each_other(name: str) -> None:
    net = awake(NETWORKS.build(name, **SMALL[name]))
    x, label = inputs(name), LABELS["999 t"]
    alone = torch.cat([net(x[i : i + 1], label[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(net(x, label), alone, rtol=1e-4, atol=1e-5 * alone.detach().abs().max().item())


@pytest.mark.parametrize("name", NETWORKS.names())
def test_every_parameter_is_trained(name: str) -> None:
    net = awake(NETWORKS.build(name, **SMALL[name]))
    net(inputs(name), LABELS["999 t"]).square().sum().backward()
    idle = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("name", NETWORKS.names())
@pytest.mark.parametrize("embedding", ["sinusoidal", "fourier"])
def test_meta_device_build_takes_on_saved_weights(name: str, embedding: str) -> None:
    saved = awake(NETWORKS.build(name, embedding=embedding, **SMALL[name]))
    with torch.device("meta"):
        net = NETWORKS.build(name, embedding=embedding, **SMALL[name])
    assert net(inputs(name).to("meta"), torch.ones(4, device="meta")).shape == inputs(name).shape
    net = net.to_empty(device="cpu").eval()
    net.load_state_dict(saved.state_dict())
    torch.testing.assert_close(net(inputs(name), LABELS["log sigma"]), saved(inputs(name), LABELS["log sigma"]))


@pytest.mark.parametrize("name", NETWORKS.names())
def test_dropout_acts_in_training_only(name: str) -> None:
    net = awake(NETWORKS.build(name, dropout=0.5, **SMALL[name]))
    x, label = inputs(name), LABELS["999 t"]
    assert torch.equal(net(x, label), net(x, label))
    net.train()
    assert not torch.equal(net(x, label), net(x, label))


@pytest.mark.parametrize(
    ("shape", "mults"),
    [
        ((1, 8, 8), (1, 2)),
        ((1, 28, 28), (1, 2, 2)),
        ((3, 32, 32), (1, 2, 2, 2)),
        ((4, 12, 8), (2, 1, 1)),
        ((2, 9, 7), (1,)),
    ],
)
def test_unet_serves_many_shapes(shape: tuple[int, ...], mults: tuple[int, ...]) -> None:
    net = awake(UNet(shape, channels=8, channel_mults=mults, num_blocks=(1,), attention=(7, 8)))
    x = torch.randn(2, *shape)
    assert net(x, torch.tensor([3.0, 700.0])).shape == x.shape


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameter_count_of_the_mlp_follows_from_the_architecture() -> None:
    d, w = 2, 16
    dense = w * w + w
    assert count(MLP((d,), width=w, depth=3)) == (d * w + w) + 2 * dense + 3 * (3 * dense + 2 * w) + 2 * w + (w * d + d)
    assert count(MLP((d,), width=w, num_classes=5)) == count(MLP((d,), width=w)) + 6 * w


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_parameter_count_of_the_unet_follows_from_the_architecture(dims: int) -> None:
    def conv(a: int, b: int, k: int = 3) -> int:
        return a * b * k**dims + b

    def block(a: int, b: int) -> int:
        return 2 * a + conv(a, b) + (4 * c * b + b) + 2 * b + conv(b, b) + (conv(a, b, 1) if a != b else 0)

    c = 8
    time = (c * 4 * c + 4 * c) + (4 * c * 4 * c + 4 * c)
    attention = 2 * 2 * c + conv(2 * c, 6 * c, 1) + conv(2 * c, 2 * c, 1)
    down = block(c, c) + block(c, 2 * c)
    up = block(4 * c, 2 * c) + block(3 * c, c)
    ends = conv(1, c) + 2 * c + conv(c, 1)
    shape = (1, *dims * (8,))
    net = UNet(shape, channels=c, channel_mults=(1, 2), num_blocks=(1,), attention=())
    assert count(net) == time + down + 2 * block(2 * c, 2 * c) + attention + up + ends
    assert count(UNet(shape, channels=c, num_blocks=(1,), attention=(4,))) == count(net) + 2 * attention
    assert count(UNet(shape, channels=c, num_blocks=(1,), attention=(), num_classes=5)) == count(net) + 6 * 4 * c


@pytest.mark.parametrize("data", OTHER_GRIDS)
def test_unet_takes_series_and_volumes(data: str) -> None:
    """Zero at first; then the label and every pixel matter, and every parameter is trained."""
    options = OTHER_GRIDS[data]
    x = torch.randn(3, *options["shape"])
    label = torch.tensor([1.0, 300.0, 999.0])
    net = UNet(**options, dims=len(options["shape"]) - 1)
    assert net(x, label).shape == x.shape
    assert not net(x, label).any()
    awake(net)
    same = net(x[:1].expand_as(x), label)
    assert (same[0] - same[1]).abs().max() > 1e-3
    assert (same[1] - same[2]).abs().max() > 1e-3
    alone = torch.cat([net(x[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, label), alone, rtol=1e-4, atol=1e-5 * alone.detach().abs().max().item())
    x.requires_grad_()
    net(x, label).square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("sides", "order", "turned"),
    [
        ((12,), (0,), (0,)),
        ((8, 12), (1, 0), (0,)),
        ((4, 8, 12), (0, 1, 2), (2,)),
        ((4, 8, 12), (2, 0, 1), (0, 1)),
    ],
)
def test_no_side_is_special(sides: tuple[int, ...], order: tuple[int, ...], turned: tuple[int, ...]) -> None:
    """Kernels with their sides reversed and exchanged, on data with theirs so, give the output with its sides so.

    In float64, where the sums that are taken in another order differ by 1e-16 each.
    """

    def turn(a: Tensor) -> Tensor:
        if a.dim() != 2 + len(sides):
            return a
        return a.permute(0, 1, *(2 + side for side in order)).flip([2 + side for side in turned])

    options: dict[str, Any] = {"channels": 8, "channel_mults": (1, 2, 1), "num_blocks": (1,), "attention": ()}
    net = awake(UNet((2, *sides), **options)).double()
    other = UNet((2, *(sides[side] for side in order)), **options).double().eval()
    other.load_state_dict({key: turn(w) for key, w in net.state_dict().items()})
    x, label = torch.randn(2, 2, *sides, dtype=torch.float64), torch.tensor([3.0, 700.0], dtype=torch.float64)
    out = net(x, label)
    torch.testing.assert_close(other(turn(x), label), turn(out), rtol=1e-9, atol=1e-9 * out.detach().abs().max().item())


@pytest.mark.parametrize("data", OTHER_GRIDS)
def test_attention_is_where_it_is_asked_for(data: str) -> None:
    """At sizes of the first side, on both ways, and in the middle; between positions wherever they are."""
    options = OTHER_GRIDS[data]
    first = options["shape"][1]
    for sizes, number in (((), 1), ((first,), 3), ((first // 2,), 3), ((first, first // 2), 5), ((7,), 1)):
        net = UNet(**{**options, "attention": sizes})
        assert sum(isinstance(m, Attention) for m in net.modules()) == number, sizes
    layer = awake(Attention(8, Style(code_width=4, dims=len(options["shape"]) - 1)))
    x = torch.randn(2, 8, *options["shape"][1:])
    order = torch.randperm(x[0, 0].numel())
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    torch.testing.assert_close(layer(shuffled), layer(x).flatten(2)[:, :, order].reshape(x.shape))


@pytest.mark.parametrize("sides", [(8,), (4, 8), (4, 2, 6)])
def test_half_and_twice_the_size_are_means_and_copies(sides: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *sides)
    spread = x
    for side in range(2, x.dim()):
        spread = spread.repeat_interleave(2, dim=side)
    assert torch.equal(double(x), spread)
    torch.testing.assert_close(halve(spread), x)
    torch.testing.assert_close(halve(x).mean(dim=tuple(range(2, x.dim()))), x.mean(dim=tuple(range(2, x.dim()))))


def test_attention_is_one_function_with_matrices_or_convolutions() -> None:
    """One head of all channels; the weights of one form are those of the other in another shape."""
    layers = awake(Attention(12, Style(code_width=4)))
    matrices = Attention(12, Style(code_width=4, dense=True))
    weights = layers.state_dict()
    matrices.load_state_dict({key: w.flatten(1) if w.dim() == 4 else w for key, w in weights.items()})
    x = torch.randn(2, 12, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrices(x), layers(x))


BLOCK = {
    "norm_in": (8,),
    "conv_in": (16, 8, 3, 3),
    "code": (16, 32),
    "norm_out": (16,),
    "conv_out": (16, 16, 3, 3),
    "skip": (16, 8, 1, 1),
}
LAYOUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "unet": {"attention.norm": (16,), "attention.qkv": (48, 16, 1, 1), "attention.out": (16, 16, 1, 1)},
    "ddpmpp": {"attention.norm": (16,), "attention.qkv": (48, 16, 1, 1), "attention.out": (16, 16, 1, 1)},
    "unet2d": {"norm": (16,), "qkv": (48, 16), "out": (16, 16)},
}


@pytest.mark.parametrize(
    ("name", "block", "attention"),
    [
        ("unet", "down.1.", "down.1."),
        ("ddpmpp", "down.2.", "down.2."),
        ("unet2d", "down.1.blocks.0.", "down.1.attention.0."),
    ],
)
def test_checkpoints_keep_their_names_and_shapes(name: str, block: str, attention: str) -> None:
    """A run that was trained before can be read and trained on: optimisers go by the order of the parameters too."""
    state = NETWORKS.build(name, **SMALL[name]).state_dict()
    expected = {block + key: shape for key, shape in BLOCK.items()}
    expected |= {attention + key: shape for key, shape in LAYOUTS[name].items()}
    found = {key.removesuffix(".weight"): tuple(w.shape) for key, w in state.items() if key.endswith(".weight")}
    own = {key: shape for key, shape in found.items() if key.startswith((block, attention))}
    assert list(own.items()) == list(expected.items())


@pytest.mark.parametrize(("channels", "groups", "side"), [(8, 8, 6), (8, 2, 6), (16, 2, 6), (8, 4, 32)])
def test_group_norm_does_not_depend_on_the_layout(channels: int, groups: int, side: int) -> None:
    x = torch.randn(2, channels, side, side)
    norm = GroupNorm(groups, channels)
    nn.init.normal_(norm.weight)
    exact = nn.functional.group_norm(x.double(), groups, norm.weight.double(), norm.bias.double()).float()
    torch.testing.assert_close(norm(x), exact)
    torch.testing.assert_close(norm(x.to(memory_format=torch.channels_last)), exact)


def naive_filter(x: Tensor, before: int, after: int, gain: float = 1.0) -> Tensor:
    """Correlate each channel with the outer product of (1, 3, 3, 1)/8, zeros before and after, pixel by pixel."""
    row = gain * torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8.0
    padded = torch.zeros(*x.shape[:2], *(n + before + after for n in x.shape[2:]), dtype=x.dtype)
    padded[:, :, before : before + x.shape[2], before : before + x.shape[3]] = x
    out = torch.zeros(*x.shape[:2], *(n - 3 for n in padded.shape[2:]), dtype=x.dtype)
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            window = padded[:, :, i : i + 4, j : j + 4]
            out[:, :, i, j] = (window * row[:, None] * row[None, :]).sum(dim=(2, 3))
    return out


def test_fir_resampling_is_the_filter() -> None:
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fir_halve(x), naive_filter(x, 1, 1)[:, :, ::2, ::2])
    torch.testing.assert_close(fir_blur(x), naive_filter(x, 2, 2))
    spread = torch.zeros(2, 3, 12, 8, dtype=torch.float64)
    spread[:, :, ::2, ::2] = x
    torch.testing.assert_close(fir_double(x), naive_filter(spread, 2, 1, gain=2.0))


@pytest.mark.parametrize("name", ["ddpm", "ddpmpp", "ncsnpp"])
def test_checkpointed_activations_change_nothing_but_memory(name: str) -> None:
    """Outputs and gradients bit for bit, with dropout; and blocks are run again in the backward pass."""
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        net = awake(NETWORKS.build(name, dropout=0.2, checkpoint_activations=again, **SMALL[name])).train()
        runs = 0

        def count(*_: object) -> None:
            nonlocal runs
            runs += 1

        net.get_submodule("middle.0").register_forward_pre_hook(count)
        torch.manual_seed(3)
        x = inputs(name).requires_grad_()
        out = net(x, LABELS["999 t"])
        out.square().sum().backward()
        assert runs == 1 + again
        found.append([out, x.grad, *(p.grad for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def conditional(name: str, **options: Any) -> nn.Module:
    """A network that is told one of three classes or none."""
    null = {"null_class": True} if name == "unet2d" else {}
    return NETWORKS.build(name, num_classes=3, **null, **SMALL[name], **options)


@pytest.mark.parametrize("name", NETWORKS.names())
def test_classes_change_the_output(name: str) -> None:
    """Each class another; a batch of several is each alone; no class is the class after the last."""
    net = awake(conditional(name))
    x, label = inputs(name)[:1].expand(4, *SMALL[name]["shape"]), torch.full((4,), 500.0)
    classes = torch.tensor([0, 1, 2, 3])
    out = net(x, label, classes)
    near = {"rtol": 1e-4, "atol": 1e-5 * out.detach().abs().max().item()}
    for i in range(4):
        torch.testing.assert_close(net(x[:1], label[:1], classes[i : i + 1]), out[i : i + 1], **near)
        for j in range(i):
            assert (out[i] - out[j]).abs().max() > 1e-3
    assert torch.equal(net(x, label, torch.full((4,), 3)), net(x, label))
    assert torch.equal(net(x, label, classes=classes.to(torch.uint8)), out)


@pytest.mark.parametrize("name", NETWORKS.names())
def test_classes_are_trained(name: str) -> None:
    """Of the rows those that a batch held, the one for no class among them."""
    net = awake(conditional(name))
    net(inputs(name), LABELS["999 t"], torch.tensor([0, 2, 3, 0])).square().sum().backward()
    rows = net.get_parameter("classes.weight").grad
    assert rows is not None
    assert rows.shape[0] == 4
    assert rows.any(dim=1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("name", NETWORKS.names())
def test_codes_of_zero_are_no_classes(name: str) -> None:
    """One tensor more, all else by the same names in the same order; where it is zero, bit for bit the same output."""
    plain, told = awake(NETWORKS.build(name, **SMALL[name])), conditional(name).eval()
    state = told.state_dict()
    assert [key for key in state if key != "classes.weight"] == list(plain.state_dict())
    told.load_state_dict({**plain.state_dict(), "classes.weight": torch.zeros_like(state["classes.weight"])})
    x, label = inputs(name), LABELS["999 t"]
    assert torch.equal(told(x, label, torch.tensor([0, 1, 2, 3])), plain(x, label))


@pytest.mark.parametrize("name", NETWORKS.names())
def test_networks_say_what_they_can_be_told(name: str) -> None:
    bare, told = NETWORKS.build(name, **SMALL[name]), conditional(name)
    assert (bare.conditions, bare.num_classes, bare.null_class) == ((), 0, False)
    assert (told.conditions, told.num_classes, told.null_class) == (("classes",), 3, True)
    if name == "unet2d":  # as that of diffusers has it
        strict = NETWORKS.build(name, num_classes=3, **SMALL[name])
        assert (strict.conditions, strict.num_classes, strict.null_class) == (("classes",), 3, False)


@pytest.mark.parametrize("name", NETWORKS.names())
def test_wrong_classes_are_one_clear_line(name: str) -> None:
    x, label = inputs(name), LABELS["999 t"]
    told, bare = conditional(name), NETWORKS.build(name, **SMALL[name])

    def refused(net: nn.Module, classes: Tensor, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            net(x, label, classes)
        assert "\n" not in str(caught.value)

    refused(bare, torch.tensor([0, 1, 2, 1]), "classes='given': expected none: this network has no classes; build it")
    refused(told, torch.tensor([0, 1, 4, 1]), "classes=4: expected 0 to 2, or 3 for no class")
    refused(told, torch.tensor([0, -1, 2, 1]), "classes=-1: expected 0 to 2")
    refused(told, torch.tensor([0, 1]), r"classes.shape=\(2,\): expected \(4,\), one for each example")
    refused(told, torch.tensor(1), r"classes.shape=\(\): expected \(4,\)")
    refused(told, torch.ones(4), "classes.dtype=torch.float32: expected whole numbers")
    refused(told, torch.ones(4, dtype=torch.bool), "classes.dtype=torch.bool: expected whole numbers")


@pytest.mark.parametrize("name", ["ddpm", "ddpmpp", "ncsnpp"])
def test_class_conditioning_reaches_the_network(name: str) -> None:
    net = awake(NETWORKS.build(name, num_classes=3, **SMALL[name]))
    denoiser = Denoiser(net, VPSDE())
    x, t = inputs(name)[:1].expand(4, -1, -1, -1), torch.tensor(0.5)
    classes = torch.tensor([0, 1, 2, 1])
    eps = denoiser(x, t, classes=classes).eps
    torch.testing.assert_close(eps[1], eps[3])
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (eps[i] - eps[j]).abs().max() > 1e-3
    none = denoiser(x, t).eps  # a code of its own: what classifier-free guidance contrasts with
    assert all((none[0] - eps[i]).abs().max() > 1e-3 for i in range(3))
    with pytest.raises(InputError, match=r"classes=.*this network has no classes"):
        Denoiser(NETWORKS.build(name, **SMALL[name]), VPSDE())(x, t, classes=classes)
    drawn = samplers.build("ddim", num_steps=2).draw(denoiser, x.shape, seed=0, classes=classes).x
    assert drawn.shape == x.shape


def test_ddpm_resamples_as_published() -> None:
    """A convolution of stride 2 with zeros below and to the right; nearest neighbours and then a convolution."""
    net = awake(NETWORKS.build("ddpm", **SMALL["ddpm"]))
    (shrink,) = [block for block in net.down if isinstance(block, ConvHalve)]
    (grow,) = [block for block in net.up if isinstance(block, ConvDouble)]
    x = torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    kernel, bias = shrink.conv.weight, shrink.conv.bias
    padded = torch.zeros(1, 64, 9, 9)
    padded[:, :, :8, :8] = x
    corner = (padded[0, :, 6:9, 6:9] * kernel).sum(dim=(1, 2, 3)) + bias
    torch.testing.assert_close(shrink(x, x)[0, :, 3, 3], corner)
    centre = x[0, :, [0, 0, 1]][:, :, [0, 0, 1]]  # around pixel (1, 1) of the doubled picture
    torch.testing.assert_close(grow(x, x)[0, :, 1, 1], (centre * grow.conv.weight).sum(dim=(1, 2, 3)) + grow.conv.bias)


def test_embeddings_have_the_stated_waves() -> None:
    label = torch.tensor([0.0, 1.0, 999.0])
    waves = Sinusoidal(8)(label)
    torch.testing.assert_close(waves[:, 0], label.sin())  # the shortest wave
    torch.testing.assert_close(waves[:, 3], (label * 1e-4).sin())  # the longest
    torch.testing.assert_close(waves[:, :4] ** 2 + waves[:, 4:] ** 2, torch.ones(3, 4))
    torch.testing.assert_close(Sinusoidal(8, shift=0.0)(label)[:, 3], (label * 1e-3).sin())  # 10⁴ to the −3/4
    torch.manual_seed(0)
    fourier = GaussianFourier(4000, scale=16.0)
    assert abs(fourier.frequencies.std() - 16.0) < 4 * 16.0 / (2 * 2000) ** 0.5
    assert "frequencies" in fourier.state_dict()
    assert list(fourier.parameters()) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"shape": (2,)}, r"shape=\(2,\): expected \(channels, length\) or .*vectors .*network.name=mlp"),
        ("unet", {"shape": (1, 2, 2, 2, 2)}, r"expected \(channels, length\) or .*for others .*network.name=mlp"),
        ("unet", {"shape": (1, 0, 8)}, r"shape=\(1, 0, 8\)"),
        ("unet", {"shape": (1, 6), "channel_mults": (1, 1, 1)}, r"shape=\(1, 6\): expected sides divisible by 4"),
        ("unet", {"shape": (1, 4, 4, 3)}, r"shape=\(1, 4, 4, 3\): expected sides divisible by 2 for 2 levels"),
        ("unet", {"dims": 1}, r"dims=1: expected 2, for there are as many sides in shape \(1, 8, 8\), or 0"),
        ("unet", {"shape": (1, 8), "dims": 2}, r"dims=2: expected 1, for there are as many sides in shape \(1, 8\)"),
        ("unet", {"shape": (1, 8), "dims": True}, "dims=True: expected a whole number"),
        *(
            (name, {"shape": shape}, rf"\(channels, height, width\); for {data} there is --config.network.name={other}")
            for name in ("ddpm", "ddpmpp", "ncsnpp", "unet2d")
            for shape, data, other in (
                ((2,), "vectors", "mlp"),
                ((1, 8), "series", "unet"),
                ((1, 4, 4, 4), "volumes", "unet"),
            )
        ),
        ("unet", {"channel_mults": (1, 2, 2, 2, 2)}, "expected sides divisible by 16 for 5 levels; give fewer"),
        ("unet", {"shape": (1, 28, 28), "channel_mults": (1, 2, 2, 2)}, "expected sides divisible by 8 for 4 levels"),
        ("unet", {"channel_mults": ()}, r"channel_mults=\(\)"),
        ("unet", {"channel_mults": (1, 0)}, r"channel_mults=\(1, 0\)"),
        ("unet", {"channel_mults": "12"}, "channel_mults='12'"),
        ("unet", {"channels": 10}, "channels=10: expected a multiple of 4"),
        ("unet", {"channels": 2}, "channels=2: expected a whole number of at least 4"),
        ("unet", {"num_blocks": (0,)}, r"num_blocks=\(0,\)"),
        ("unet", {"num_blocks": (1, 1, 1)}, r"num_blocks=\(1, 1, 1\)"),
        ("unet", {"attention": (4.0,)}, r"attention=\(4\.0,\)"),
        ("unet", {"dropout": 1.5}, "dropout=1.5"),
        ("unet", {"embedding": "fourrier"}, "embedding='fourrier': unknown; did you mean 'fourier'"),
        ("unet", {"chanels": 32}, "did you mean 'channels'"),
        ("ncsnpp", {"shape": (1, 6, 6), "channel_mults": (1, 2, 2)}, "expected sides divisible by 4 for 3 levels"),
        *((name, {"num_classes": -1}, "num_classes=-1") for name in NETWORKS),
        ("unet2d", {"null_class": 1}, "null_class=1: expected True or False"),
        ("ddpm", {"checkpoint_activations": 1}, "checkpoint_activations=1: expected True or False"),
        ("ddpm", {"attention": (0,)}, r"attention=\(0,\)"),
        ("ncsnpp", {"dropout": -0.1}, "dropout=-0.1"),
        ("mlp", {"shape": ()}, r"shape=\(\)"),
        ("mlp", {"shape": 2}, "shape=2"),
        ("mlp", {"width": 2}, "width=2"),
        ("mlp", {"width": 5}, "features=5: expected an even number"),
        ("mlp", {"depth": True}, "depth=True"),
    ],
)
def test_bad_options_are_one_clear_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        NETWORKS.build(name, **{"shape": SMALL[name]["shape"], **options})
    assert "\n" not in str(caught.value)
