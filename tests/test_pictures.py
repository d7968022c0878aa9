"""Figures of samples beside the data: whole files for every kind of data, odd ones too, and what is read off them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import sde_diffusion as sd
from sde_diffusion.evaluation import figures, pictures
from sde_diffusion.evaluation.curves import Point
from sde_diffusion.evaluation.figures import save_sweep
from sde_diffusion.evaluation.pictures import save_examples, save_grid, save_strip


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every figure, as they were when it was written."""
    kept: list[Any] = []
    original = figures.figure

    @contextmanager
    def figure(*args: Any, **options: Any) -> Iterator[list[Any]]:
        with original(*args, **options) as axes:
            yield axes
            kept.append(axes)

    for module in (figures, pictures):
        monkeypatch.setattr(module, "figure", figure)
    return kept


def whole(path: Path) -> None:
    """Require a picture that can be read to its end, and in which something is drawn."""
    with Image.open(path) as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 2


KINDS = {
    "scalars": (),
    "one component": (1,),
    "vectors": (5,),
    "more components than are drawn": (9,),
    "series": (2, 64),
    "more channels than are drawn": (5, 2),
    "one step": (3, 1),
    "volumes": (1, 8, 8, 8),
    "several channels of volumes": (2, 1, 3, 5),
    "pictures": (1, 6, 6),
}


@pytest.mark.parametrize("shape", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("sizes", [(2100, 1), (1, 0)], ids=str)
def test_every_kind_is_written_whole(shape: tuple[int, ...], sizes: tuple[int, int], tmp_path: Path) -> None:
    samples, data = (normals(n, *shape, seed=n) for n in sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an axis without length, a mean of nothing
        save_examples(tmp_path / "examples.png", samples, data if len(data) else None)
    whole(tmp_path / "examples.png")


@pytest.mark.parametrize("shape", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("value", [0.0, -1e7])
def test_constant_data_are_drawn(shape: tuple[int, ...], value: float, tmp_path: Path) -> None:
    constant = torch.full((12, *shape), value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_examples(tmp_path / "constant.png", constant, constant)
    whole(tmp_path / "constant.png")


def test_samples_of_constant_data_are_seen_to_spread(tmp_path: Path, drawn: list[Any]) -> None:
    save_examples(tmp_path / "constant.png", 7.0 + 0.01 * normals(500, 1), torch.full((500, 1), 7.0))
    low, high = drawn[0][0].get_xlim()
    assert 0.04 < high - low < 0.1  # 99 % of normals lie within ± 2.6 deviations, and a tenth of air


def test_a_path_without_a_suffix_is_written_as_text_and_as_points(tmp_path: Path) -> None:
    save_examples(tmp_path / "examples", normals(20, 2).bfloat16(), None, ["price in $", "of $x^{$"])
    whole(tmp_path / "examples.png")
    text = (tmp_path / "examples.svg").read_text(encoding="utf-8")
    assert "price in $" in text
    assert "of $x^{$" in text  # no formula


def test_pairs_say_what_they_show(tmp_path: Path, drawn: list[Any]) -> None:
    save_examples(tmp_path / "nine.png", normals(30, 9), normals(40, 9, seed=1), [f"column {i}" for i in range(9)])
    (axes,) = drawn
    assert len(axes) == 36
    assert axes[0].figure.get_suptitle() == "6 of 9 components: 30 samples, 40 data"
    assert [axis.get_xlabel() for axis in axes[-6:]] == [f"column {i}" for i in range(6)]
    assert [axis.get_ylabel() for axis in axes[6::6]] == [f"column {i}" for i in range(1, 6)]
    assert [text.get_text() for text in axes[5].get_legend().get_texts()] == ["data", "samples"]
    points = axes[6].collections[0].get_offsets()
    assert len(points) == 70


def test_an_outlier_squashes_nothing_and_samples_beyond_are_told(tmp_path: Path, drawn: list[Any]) -> None:
    data = normals(2000, 2)
    data[0] = 1e6
    save_examples(tmp_path / "outlier.png", normals(1000, 2, seed=1), data)
    save_examples(tmp_path / "diverged.png", 100.0 * normals(1000, 2, seed=1), data)
    for axes, beyond in zip(drawn, (False, True), strict=True):
        low, high = axes[0].get_xlim()
        # Between quantiles of 0.5 % normals are 5.2 wide; one such width on each side is for samples, a tenth for air.
        assert 5.0 < high - low < 1.2 * 3.0 * 5.6
        assert ("beyond the axes" in axes[0].figure.get_suptitle()) == beyond


def test_histograms_are_densities_of_all_values(tmp_path: Path, drawn: list[Any]) -> None:
    """Each integrates to the share of its values that the axis shows: all samples, and half of the data."""
    samples = torch.rand(500, 1, generator=torch.Generator().manual_seed(0))
    save_examples(tmp_path / "one.png", samples, None)
    save_examples(tmp_path / "far.png", torch.cat([samples, samples + 100.0]), samples)
    for axes, share in zip(drawn, (1.0, 0.5), strict=True):
        density = axes[0].patches[-1].get_data()
        assert float((density.values * np.diff(density.edges)).sum()) == pytest.approx(share, rel=1e-9)


def test_spectra_of_waves_are_the_closed_form(tmp_path: Path, drawn: list[Any]) -> None:
    """A cosine of amplitude a at one frequency has power a² L/4 there and none elsewhere; noise has its variance."""
    phase = 2.0 * math.pi * torch.rand(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wave = 3.0 * torch.cos(2.0 * math.pi * 5.0 / 32.0 * torch.arange(32).double() + phase)[:, None]
    save_examples(tmp_path / "series.png", wave, 0.5 * normals(4000, 1, 32))
    noise, cosine = ({line.get_label(): line for line in drawn[0][-1].lines}[name] for name in ("data", "samples"))
    assert cosine.get_xdata() == pytest.approx(np.arange(1, 17) / 32)
    power = cosine.get_ydata()
    assert power[4] == pytest.approx(9.0 * 32.0 / 4.0, rel=1e-9)
    assert np.nan_to_num(np.delete(power, 4)).max() < 1e-25
    # A mean of 4,000 exponential variables, at L/2 of squares of normals: relative errors 1/√4000 and √2/√4000.
    assert noise.get_ydata() == pytest.approx(np.full(16, 0.25), rel=5.0 * math.sqrt(2.0 / 4000.0))


def test_labels_of_spectra_do_not_overlap(tmp_path: Path, drawn: list[Any]) -> None:
    """Over two powers of ten and more these alone are labelled; in between 1, 2, … times a power of ten."""
    steep, flat = normals(200, 1, 64).cumsum(dim=-1), normals(200, 1, 64)
    for name, x in (("steep", steep), ("flat", flat)):
        save_examples(tmp_path / f"{name}.png", x, x)
    for axes, labelled in zip(drawn, (False, True), strict=True):
        axes[-1].figure.canvas.draw()
        low, high = axes[-1].get_ylim()
        assert (high < 20.0 * low) == labelled
        assert any(label.get_text() for label in axes[-1].get_yticklabels(minor=True)) == labelled


def test_volumes_lie_above_those_of_the_data(tmp_path: Path, drawn: list[Any]) -> None:
    samples, data = normals(3, 1, 4, 8, 8), normals(20, 1, 4, 8, 8, seed=1)
    save_examples(tmp_path / "volumes.png", samples, data)
    wall = np.asarray(drawn[0][0].images[0].get_array().filled(np.nan))
    assert wall.shape == (8 + 1 + 8, 8 * 9 - 1)
    assert np.array_equal(wall[:8, 9:17], samples[1, 0, 2].double().numpy())
    assert np.array_equal(wall[9:, 9 * 7 :], data[7, 0, 2].double().numpy())
    assert np.isnan(wall[:8, 9 * 3 :]).all()
    assert [label.get_text() for label in drawn[0][0].get_yticklabels()] == ["samples", "data"]


@pytest.mark.parametrize(
    ("samples", "data", "columns", "message"),
    [
        (torch.zeros(0, 3), None, (), r"samples\.shape=\(0, 3\): expected \(N, 3\), N ≥ 1"),
        (torch.tensor(1.0), None, (), r"samples\.shape=\(\): expected \(N,\), N ≥ 1"),
        (torch.zeros(4, 3), torch.zeros(4, 2), (), r"data\.shape=\(4, 2\): expected \(N, 3\), N ≥ 1"),
        (torch.full((4, 3), math.nan), None, (), "samples: 12 of its 12 numbers are NaN or infinite and cannot be"),
        (torch.zeros(4, 2, 9), torch.full((4, 2, 9), math.inf), (), "data: 72 of its 72 numbers are NaN or infinite"),
        (torch.zeros(4, 3), None, ("a", "b"), "columns=2: expected 3 names, one a component or channel"),
        (torch.zeros(4, 3, 9), None, ("a", "b"), "columns=2: expected 3 names, one a component or channel"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_line(
    samples: Tensor, data: Tensor | None, columns: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(sd.InputError, match=message) as error:
        save_examples(tmp_path / "none.png", samples, data, columns)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_grids_and_strips_draw_vectors_as_points(tmp_path: Path, drawn: list[Any]) -> None:
    save_grid(tmp_path / "grid.png", normals(9, 4))
    save_strip(tmp_path / "strip.png", [normals(9, 4, seed=i) for i in range(3)], [1.0, 0.5, 0.0])
    assert [len(axes) for axes in drawn] == [1, 3]
    assert [axis.get_title() for axis in drawn[1]] == ["t = 1", "t = 0.5", "t = 0"]
    save_grid(tmp_path / "pictures.png", normals(4, 1, 8, 8).clamp(-1.0, 1.0))
    for name in ("grid", "strip", "pictures"):
        whole(tmp_path / f"{name}.png")


def test_strips_draw_series_as_lines_on_one_scale(tmp_path: Path, drawn: list[Any]) -> None:
    states = [normals(5, 2, 16, seed=i) * (8 - i) for i in range(8)]
    save_strip(tmp_path / "strip.png", states, [1.0 - i / 8 for i in range(8)])
    whole(tmp_path / "strip.png")
    (axes,) = drawn
    assert len(axes) == 12  # two rows of six, four of them empty
    assert [axis.get_title() for axis in axes[:3]] == ["t = 1", "t = 0.875", "t = 0.75"]
    assert "3 of 5 series, first of 2 channels" in axes[0].figure.get_suptitle()
    for axis, state in zip(axes[:8], states, strict=True):
        assert [len(line.get_ydata()) for line in axis.lines] == [16, 16, 16]
        for line, one in zip(axis.lines, state, strict=False):
            assert np.array_equal(line.get_ydata(), one[0].double().numpy())
        assert axis.get_ylim() == axes[0].get_ylim()
    low, high = axes[0].get_ylim()
    few = torch.stack(states)[:, :3, 0]
    assert low < float(few.min()) < float(few.max()) < high
    assert not any(axis.axison for axis in axes[8:])


def test_strips_draw_middle_slices_of_volumes(tmp_path: Path, drawn: list[Any]) -> None:
    states = [normals(5, 2, 3, 4, 8, seed=i) for i in range(3)]
    save_strip(tmp_path / "strip.png", states, [1.0, 0.5, 0.0])
    whole(tmp_path / "strip.png")
    axis = drawn[0][0]
    wall = np.asarray(axis.images[0].get_array().filled(np.nan))
    assert wall.shape == (4 * 5 - 1, 3 * 9 - 1)  # four volumes below one another, a column a time
    assert np.array_equal(wall[5:9, 18:], states[2][1, 0, 1].double().numpy())
    assert np.isnan(wall[4]).all()
    assert [label.get_text() for label in axis.get_xticklabels()] == ["t = 1", "t = 0.5", "t = 0"]
    assert axis.get_xlabel() == "slice 2 of 3, first of 2 channels"


@pytest.mark.parametrize("shape", [(1, 1), (2, 16), (1, 2, 2, 2)])
def test_strips_of_one_time_and_of_no_difference_are_drawn(shape: tuple[int, ...], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_strip(tmp_path / "strip.png", [torch.zeros(1, *shape)], [0.5])
    whole(tmp_path / "strip.png")


def test_strips_of_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for shape in ((2, 16), (1, 2, 2, 2)):
        with pytest.raises(sd.InputError, match=r"states: \d+ of its \d+ numbers are NaN or infinite"):
            save_strip(tmp_path / "strip.png", [torch.full((3, *shape), math.nan)], [0.5])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metrics", "mark"), [((0.5, 0.02), None), ((0.5, -0.02), 0.01), ((0.5, 0.02), -0.01), ((0.0,), 0)]
)
def test_sweeps_show_estimates_below_zero(
    metrics: tuple[float, ...], mark: float | None, tmp_path: Path, drawn: list[Any]
) -> None:
    """What is estimated without bias may be: the axis is then linear about 0, so that no point is lost."""
    points = [Point("ddim", "num_steps", 10.0**i, 10.0**i, 1.0, m, 0.01, ()) for i, m in enumerate(metrics)]
    save_sweep(tmp_path / "sweep.png", points, "energy distance", mark=mark)
    whole(tmp_path / "sweep.png")
    (axis,) = drawn[0]
    values = [*metrics, *([] if mark is None else [mark])]
    assert axis.get_yscale() == ("log" if min(values) > 0.0 else "symlog")
    low, high = axis.get_ylim()
    assert low < min(values) <= max(values) < high
