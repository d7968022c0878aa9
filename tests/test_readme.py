"""The README is true: its code runs, its table is the registry's. Run as a script it renews the table."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import samplers
from sde_diffusion.commands.flags import parse
from sde_diffusion.commands.main import COMMANDS
from sde_diffusion.commands.samplers import markdown

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
TABLE = re.compile(r"(<!-- sampler table -->\n).*(\n<!-- end of sampler table -->)", re.DOTALL)


def blocks(language: str, file: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)


def test_python_blocks_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):  # a later block goes on from an earlier one
        exec(compile(block, "README.md", "exec"), names)
    *lines, likelihood = capsys.readouterr().out.splitlines()
    ours, exact = (float(n) for n in re.findall(r"tensor\((-?[\d.]+)", likelihood))
    assert abs(ours - exact) < 1e-3
    assert len(lines) == 4
    for line in lines:  # the mode's share within 5 standard errors of 2,000 draws and the bias of 100 steps
        assert abs(float(line.split("left mode ")[1].split()[0]) - 0.3) < 0.05 + 0.02


def test_fifteen_lines() -> None:
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 15


def test_contributing_example_runs() -> None:
    """The example sampler registers, is certified, and is taken out again."""
    from functools import partial

    import sde_diffusion as sd
    from sde_diffusion.evaluation.verification import certify

    try:
        exec(compile(blocks("python", "CONTRIBUTING.md")[0], "CONTRIBUTING.md", "exec"), {"__name__": __name__})
        build = partial(samplers.build, "my_sampler")
        assert not certify(build, samplers.config("my_sampler"), sd.VPSDE()).failures
    finally:
        samplers.SAMPLERS._entries.pop("my_sampler", None)


def test_sampler_table_is_the_registry() -> None:
    found = TABLE.search(README.read_text(encoding="utf-8"))
    assert found is not None
    assert markdown() in found.group(0), "renew it: python tests/test_readme.py"


def test_commands_parse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command line of the README names a known command and known flags."""
    import importlib

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)  # --pretrained unpacks its run here
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("sde-diffusion ")]
    assert {shlex.split(line)[1] for line in lines} == set(COMMANDS)
    for line in lines:
        _, name, *flags = shlex.split(line)
        define = importlib.import_module(f"sde_diffusion.commands.{name}").define_flags
        parse(name, "", define, [f for f in flags if not f.startswith("--workdir")])


def test_files_that_the_readme_names_exist() -> None:
    for name in ("CONTRIBUTING.md", "benchmarks/README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"):
        assert (ROOT / name).exists()


if __name__ == "__main__":
    README.write_text(TABLE.sub(rf"\1{markdown()}\2", README.read_text(encoding="utf-8")), encoding="utf-8")
