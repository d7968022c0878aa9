"""One self-contained page of a run, or of several side by side: what was trained, measured and drawn.

The page holds its data, its pictures and its plotting library and needs no network. Its figures are written for papers
too, as SVG and PNG, and its numbers as CSV.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sde_diffusion.errors import require
from sde_diffusion.evaluation import bits
from sde_diffusion.evaluation.curves import (
    SOLVER_ERROR,
    Point,
    as_csv,
    by_curve,
    measurements,
    metric_names,
    points,
    recommendation,
    require_alike,
)
from sde_diffusion.evaluation.figures import SUFFIXES, save_bound, save_sweep, save_training
from sde_diffusion.evaluation.interactive import (
    COSTS,
    WIDGET,
    bound_figure,
    solver_figure,
    sweep_figure,
    training_figure,
)
from sde_diffusion.evaluation.pictures import is_picture
from sde_diffusion.evaluation.sweep import ALIKE, PICTURES, RECORD, TRAJECTORY, Row, picture_of, read_rows
from sde_diffusion.evaluation.uncertainty import plus_minus
from sde_diffusion.files import beside, provenance, write_atomically
from sde_diffusion.training.log import read_log
from sde_diffusion.training.settings import is_run, read_settings

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SAMPLES = "samples"
NUM_DRAWN = 8
"""Figures of drawn samples that a page shows, the latest."""


@dataclass(frozen=True)
class Record:
    """What a workdir holds of a run.

    Attributes:
        name: of the folder.
        folder: the workdir.
        settings: content of its ``config.json``.
        training: lines of its ``train.jsonl``.
        rows: of its sweeps.
        likelihoods: content of its ``likelihood*.json``, by the data scored.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    training: list[dict[str, float]]
    rows: list[Row]
    likelihoods: dict[str, Any]

    @property
    def configuration(self) -> dict[str, str]:
        """The resolved configuration under dotted keys."""
        found: dict[str, str] = {}

        def walk(node: dict[str, Any], path: str) -> None:
            for key, value in node.items():
                if isinstance(value, dict):
                    walk(value, f"{path}{key}.")
                else:
                    found[path + key] = json.dumps(value, ensure_ascii=False)

        walk(self.settings["config"], "")
        return found

    @property
    def kind(self) -> str:
        """How its samples are shown: "picture", of pixels, or "plot"."""
        return "picture" if is_picture(self.settings.get("data", {}).get("shape", ())) else "plot"

    @property
    def drawn(self) -> list[tuple[str, str]]:
        """The figures of the latest samples that were drawn, by their names."""
        paths = [p for p in (self.folder / SAMPLES).glob("*.png") if not p.stem.endswith(TRAJECTORY)]
        latest = sorted(paths, key=lambda path: path.stat().st_mtime)[-NUM_DRAWN:]
        return [(path.stem, _embedded(path.read_bytes(), "image/png")) for path in sorted(latest)]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The run in a few words."""
        config, data = self.settings["config"], self.settings.get("data", {})
        shape = "×".join(map(str, data.get("shape", [])))
        levels = f", {data['levels']} grey levels" if data.get("levels") else ""
        codec = data.get("codec", {}).get("name")
        found = [
            ("data", f"{config['data']['name']}, {shape}{levels}{f', {codec}' if codec else ''}"),
            ("SDE", config["sde"]["name"]),
            ("network", f"{config['network']['name']}, {config['denoiser']['prediction']}-prediction"),
        ]
        if self.training:
            last = self.training[-1]
            found.append(("trained", f"{last['step']:,} steps, loss {last['loss']:.4g}"))
        if self.rows:
            found.append(("checkpoint", str(self.rows[-1]["checkpoint"])[:12]))
        made = self.settings.get("provenance", {})
        code = f"{made.get('version')} {str(made.get('commit') or '')[:10]}"
        return [*found, ("code", code), ("seed", str(config["seed"]))]


def gather(folder: Path) -> Record:
    """Read what a workdir holds.

    Raises:
        InputError: if it is not the folder of a run, or a file of it is damaged.
    """
    expected = "the folder of a run, with its config.json"
    require(is_run(folder), "workdir", str(folder), expected, "make one with sde-diffusion train")
    settings = read_settings(folder)
    likelihoods = {}
    for path in sorted(folder.glob("likelihood*.json")):
        content = bits.read_summary(path)
        made = content["provenance"]
        noun = "images" if bits.unit(content) == "bits/dim" else "samples"
        given = f", given {made['given']}" if made.get("given") else ""
        of = f"{made.get('data', 'pictures')} {made.get('split', '')}".strip()
        likelihoods[f"{of}, {made['num_examples']} {noun}{given}"] = content
    return Record(folder.resolve().name, folder, settings, read_log(folder), read_rows(folder / RECORD), likelihoods)


def combine(records: Sequence[Record]) -> list[list[Row]]:
    """Return the rows to be drawn together, one list a measurement, the newest first.

    Rows of several runs carry the run's name, and are of the newest measurement that all runs have in common.

    Raises:
        InputError: if the runs have none in common; names the field in which the newest ones differ.
    """
    own = [[_named(group, record) for group in measurements(record.rows)] for record in records if record.rows]
    if len(own) < 2:
        return own[0] if own else []
    fields = [field for field in ALIKE if field != "checkpoint"]

    def key(group: list[Row]) -> str:
        return json.dumps([group[0][field] for field in fields])

    for group in own[0]:
        matching = [next((g for g in groups if key(g) == key(group)), []) for groups in own]
        if all(matching):
            return [[row for g in matching for row in g]]
    newest = [row for groups in own for row in groups[0]]
    require_alike(newest, fields)
    return [newest]


def _named(rows: Sequence[Row], record: Record) -> list[Row]:
    return [{**row, "run": record.name} for row in rows]


def _embedded(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _picture(path: Path, caption: Point) -> dict[str, Any]:
    return {"caption": caption, "image": _embedded(path.read_bytes(), "image/png")}


def _gallery(rows: Sequence[Row], records: dict[str, Record]) -> list[dict[str, Any]]:
    """Return for each curve its pictures of the first seed, in the order of their cost, and its trajectory."""
    found = []
    for curve, own in by_curve(points(rows)).items():
        cells, strip = [], None
        for point in own:
            row = min(point.rows, key=lambda r: int(r["seed"]))
            path = records[row["run"]].folder / PICTURES / f"{picture_of(row)}.png"
            if path.exists():
                cells.append(_picture(path, point))
            longer = path.with_name(f"{path.stem}{TRAJECTORY}.png")
            strip = _picture(longer, point) if longer.exists() else strip
        if cells:
            kind = records[own[0].rows[0]["run"]].kind
            found.append({"curve": curve, "cells": cells, "strip": strip, "kind": kind})
    return found


def _sweep_section(rows: Sequence[Row], records: dict[str, Record]) -> dict[str, Any]:
    names, first = metric_names(rows), rows[0]
    found = {metric: points(rows, metric) for metric in names}
    solver = points(rows, SOLVER_ERROR)
    machines = sorted({f"{row['provenance'].get('machine')}, {row['provenance'].get('device')}" for row in rows})
    return {
        "metric": first["metric"],
        "title": f"{first['metric']} of {first['num_samples']:,} samples against {_reference(first)}",
        "recommendation": recommendation(found[first["metric"]], first["metric"]),
        "figures": {cost: sweep_figure(rows, cost) for cost in COSTS},
        "solver": solver_figure(solver, rows) if solver else None,
        "machines": machines,
        "names": names,
        "table": list(zip(*found.values(), strict=True)),
        "gallery": _gallery(rows, records),
        "csv": _embedded(as_csv(rows).encode(), "text/csv"),
        "key": {field: first.get(field) for field in ALIKE},
        "checkpoints": sorted({str(row["checkpoint"]) for row in rows}),
    }


def _reference(row: Row) -> str:
    """The reference without its hash."""
    return str(row["reference"]).rsplit(" ", 1)[0]


def _differing(sections: Sequence[list[Row]]) -> list[str]:
    """Return the fields in which measurements differ."""
    return [field for field in ALIKE if len({json.dumps(rows[0].get(field)) for rows in sections}) > 1]


def write_report(folders: Sequence[Path]) -> list[Path]:
    """Write the page of a run, ``report.html`` in its folder, or of several, ``comparison.html`` in that of the first.

    Beside it, in a folder of the page's name, its figures as SVG and PNG.

    Returns:
        All files written, the page first.

    Raises:
        InputError: if a folder is not that of a run, or the runs' sweeps cannot be compared.
    """
    import jinja2
    from markupsafe import Markup
    from plotly.io import to_html
    from plotly.offline import get_plotlyjs

    records = _distinct([gather(folder) for folder in folders])
    several = len(records) > 1
    sweeps = combine(records)
    places = {record.name: record for record in records}
    number = iter(range(10_000))

    def interactive(figure: Any) -> Markup:
        return Markup(to_html(figure, WIDGET, include_plotlyjs=False, full_html=False, div_id=f"figure-{next(number)}"))

    trained = {record.name: record.training for record in records if record.training}
    configurations = [record.configuration for record in records]
    keys = list(dict.fromkeys(key for configuration in configurations for key in configuration))
    settings = [(key, [configuration.get(key, "") for configuration in configurations]) for key in keys]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["interactive"] = interactive
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=" and ".join(places) if several else records[0].name,
        plotly=Markup(get_plotlyjs()),
        records=records,
        sweeps=[_sweep_section(rows, places) for rows in sweeps],
        differing=_differing(sweeps),
        training=[training_figure(trained, value) for value in ("loss", "learning_rate")] if trained else [],
        bits=bits,
        plus_minus=plus_minus,
        bound_figure=bound_figure,
        settings=sorted(settings, key=lambda pair: len(set(pair[1])) == 1),
        made=provenance(),
    )
    target = folders[0] / ("comparison.html" if several else "report.html")
    write_atomically(target, lambda p: p.write_text(page, encoding="utf-8"))
    return [target, *_paper_figures(target.with_suffix(""), records, sweeps)]


def _distinct(records: list[Record]) -> list[Record]:
    """Name runs by their paths where their folders' names are the same."""
    names = [record.name for record in records]
    same = len(set(names)) < len(names)
    return [replace(record, name=str(record.folder)) for record in records] if same else records


def _paper_figures(folder: Path, records: Sequence[Record], sweeps: Sequence[list[Row]]) -> list[Path]:
    """Write the figures and the rows of the newest measurement."""
    written = []

    def save(name: str, write: Callable[[Path], None]) -> None:
        stem = folder / _file_name(name)
        written.extend(formats := [stem.with_suffix(suffix) for suffix in SUFFIXES])
        with beside(*formats):
            write(stem)

    if sweeps:
        rows, metric = sweeps[0], sweeps[0][0]["metric"]
        mark = (rows[0].get("training_images") or {}).get(metric)
        for cost in COSTS:
            save(f"{metric}_{cost}", partial(save_sweep, points=points(rows), metric=metric, cost=cost, mark=mark))
        if solver := points(rows, SOLVER_ERROR):
            save("solver_error_nfe", partial(save_sweep, points=solver, metric=SOLVER_ERROR))
    if trained := {record.name: record.training for record in records if record.training}:
        save("training", partial(save_training, runs=trained))
    for record in records:
        for data, result in record.likelihoods.items():
            curves = partial(save_bound, curves=result["curves"], unit=bits.unit(result))
            save(f"bound {record.name} {data}", curves)
    if sweeps:
        written.append(folder / "benchmark.csv")
        with beside(written[-1]):
            write_atomically(written[-1], lambda p: p.write_text(as_csv(rows), encoding="utf-8"))
    return [path for path in written if path.exists()]


def _file_name(text: str) -> str:
    return re.sub(r"[^\w-]+", "_", text.replace("∞", "infinite")).strip("_")
