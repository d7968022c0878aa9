"""Mutants: a fault put into the mathematics on purpose must fail a fast test.

Some are named, faults that tests once let pass. Others are made mechanically from the syntax trees of the mathematics
and of the samplers: a sign is turned, a product or a number is off by 1 %, a factor is dropped. Each lies in a copy of
the tree, whose fast tests are run until one fails; a mutant that none fails survives, and shows what is not tested.

Our own, since mutmut and cosmic-ray go through every operator of a tree, for hours and with a state of their own. Here
are few mutants, of formulas alone, the same in every run.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_architecture import FLOORS

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """A fault: the bytes of ``file`` from ``start`` to ``stop`` read ``new``; ``name`` says what that means."""

    name: str
    file: str
    start: int
    stop: int
    new: str

    def write(self, tree: Path) -> None:
        """Put the fault into a copy of the tree."""
        text = (ROOT / self.file).read_bytes()
        (tree / self.file).write_bytes(text[: self.start] + self.new.encode() + text[self.stop :])


def run_tests(tree: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Run the fast tests of files of a tree up to the first failure; returns whether all passed, and what was printed.

    A mutant that runs forever is killed as one that fails is.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")])}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=7200)
    except subprocess.TimeoutExpired:
        return False, "FAILED: two hours"
    assert done.returncode in (0, 1, 2), done.stdout + done.stderr  # 2: a module that cannot be imported
    return done.returncode == 0, done.stdout


def copy_tree(into: Path) -> Path:
    """Copy what tests need, with compiled modules, whose times are kept."""
    for name in ("sde_diffusion", "samplers", "tests", "configs"):
        shutil.copytree(ROOT / name, into / name)
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy2(ROOT / name, into / name)
    return into


def survives(mutant: Mutant, tests: tuple[str, ...], folder: Path) -> bool:
    """Return whether all tests pass on a mutant; prints which did not."""
    tree = copy_tree(folder / hashlib.sha256(repr(mutant).encode()).hexdigest()[:12])
    mutant.write(tree)
    passed, text = run_tests(tree, tests)
    shutil.rmtree(tree)
    killer = re.search(r"^(FAILED|ERROR) (\S+)", text, re.MULTILINE)
    print(f"{mutant.name}: {'SURVIVES' if passed else killer.group(2) if killer else 'killed'}", flush=True)
    return passed


# Named: a fault, its file, the text and what it is turned into, the file of tests that must notice.

NAMED = [
    (
        "the EDM weighting without its 1",
        "sde_diffusion/objectives/weightings.py",
        "return 1.0 + torch.exp(-sde.log_snr(t))",
        "return torch.exp(-sde.log_snr(t))",
        "tests/test_objectives.py",
    ),
    (
        "Min-SNR with another power",
        "sde_diffusion/objectives/weightings.py",
        "self.gamma * torch.exp(-sde.log_snr(t))",
        "self.gamma * torch.exp(-0.5 * sde.log_snr(t))",
        "tests/test_objectives.py",
    ),
    (
        "the likelihood weighting with another power",
        "sde_diffusion/objectives/weightings.py",
        "return (sde.coefficients(t)[1] / sde.sigma(t)) ** 2",
        "return sde.coefficients(t)[1] / sde.sigma(t)",
        "tests/test_objectives.py",
    ),
    (
        "the continuous bound over 90 % of each cell",
        "sde_diffusion/bounds.py",
        "(i // 2 + u) / (draws // 2)",
        "(i // 2 + 0.9 * u) / (draws // 2)",
        "tests/test_bounds.py",
    ),
    (
        "the score of the Langevin corrector at the time before",
        "samplers/correctors.py",
        "p, z = denoiser(x, s), noise(x, s, s)",
        "p, z = denoiser(x, t), noise(x, s, s)",
        "tests/test_samplers.py",
    ),
    (
        "the Langevin corrector without α_{t|s}",
        "samplers/correctors.py",
        "size = 2.0 * (t.alpha / s.alpha * self.snr * ratio) ** 2",
        "size = 2.0 * (self.snr * ratio) ** 2",
        "tests/test_samplers.py",
    ),
    (
        "the drift of reverse diffusion × 1.01",
        "samplers/reverse_diffusion.py",
        "combine(x=2.0 - alpha_ts, score=beta)",
        "combine(x=1.0 + 1.01 * (1.0 - alpha_ts), score=1.01 * beta)",
        "tests/test_samplers.py",
    ),
    (
        "the Lévy area of torchsde × 0.8",
        "samplers/torchsde_solvers.py",
        "0.5 * w + z * (h / 12.0) ** 0.5",
        "0.5 * w + 0.8 * z * (h / 12.0) ** 0.5",
        "tests/test_samplers.py",
    ),
    (
        "the sign of the default label",
        "sde_diffusion/labels.py",
        "return -self.scale * level.log_snr",
        "return self.scale * level.log_snr",
        "tests/test_denoisers.py",
    ),
    (
        "Muon without Nesterov",
        "sde_diffusion/training/muon.py",
        'return grad.lerp(state["momentum"], MOMENTUM)',
        'return state["momentum"].clone()',
        "tests/test_training.py",
    ),
    (
        "EMA without buffers",
        "sde_diffusion/training/ema.py",
        "shadow.copy_(buffer)",
        "pass",
        "tests/test_training.py",
    ),
    (
        "precision and recall with k = 4",
        "sde_diffusion/evaluation/precision_recall.py",
        "NEIGHBOURS = 3\n",
        "NEIGHBOURS = 4\n",
        "tests/test_uncertainty.py",
    ),
    (
        "the prior of VE + 1 %",
        "sde_diffusion/sdes.py",
        "return self.sigma_max\n",
        "return 1.01 * self.sigma_max\n",
        "tests/test_sdes.py",
    ),
    (
        "σ of L_0 + 10 %",
        "sde_diffusion/bounds.py",
        "mean, std = denoiser(x, t).x0, t.sigma",
        "mean, std = denoiser(x, t).x0, 1.1 * t.sigma",
        "tests/test_bounds.py",
    ),
    (
        "a tolerance within half of the statistical error",
        "sde_diffusion/likelihood.py",
        "<= 0.1 * statistical",
        "<= 0.5 * statistical",
        "tests/test_likelihood.py",
    ),
    (
        "the standard error over probes − 1",
        "sde_diffusion/likelihood.py",
        "by_probe.std(dim=0) / math.sqrt(probes) if",
        "by_probe.std(dim=0) / math.sqrt(probes - 1) if",
        "tests/test_likelihood.py",
    ),
    (
        "the standard error of a mean over n − 1",
        "sde_diffusion/likelihood.py",
        "float(values.std()) / math.sqrt(len(values)) if",
        "float(values.std()) / math.sqrt(len(values) - 1) if",
        "tests/test_likelihood.py",
    ),
    (
        "the standard deviation of a mean over n",
        "sde_diffusion/likelihood.py",
        "float(values.std()) / math.sqrt(len(values)) if",
        "float(values.std(correction=0)) / math.sqrt(len(values)) if",
        "tests/test_likelihood.py",
    ),
    (
        "the probes' share of the budget without n",
        "sde_diffusion/likelihood.py",
        "(std_error**2).nanmean().sqrt() / math.sqrt(len(x))",
        "(std_error**2).nanmean().sqrt()",
        "tests/test_likelihood.py",
    ),
    (
        "the variance of a distance over n − 1",
        "sde_diffusion/evaluation/uncertainty.py",
        "jackknife = sum(float(part.var()) / n for",
        "jackknife = sum(float(part.var()) / (n - 1) for",
        "tests/test_uncertainty.py",
    ),
    (
        "the standard error of the continuous bound as of independent draws",
        "sde_diffusion/bounds.py",
        "(pairs[:, 0] - pairs[:, 1]).square().sum(dim=0).sqrt()",
        "(0.5 * (pairs[:, 0] - pairs[:, 1]).square()).sum(dim=0).sqrt()",
        "tests/test_bounds.py",
    ),
    (
        "the cosine chain clipped at 0.99",
        "sde_diffusion/chain.py",
        "def cosine(cls, num_train_steps: int = 1000, beta_last: float = 0.999)",
        "def cosine(cls, num_train_steps: int = 1000, beta_last: float = 0.99)",
        "tests/test_sdes.py",
    ),
]


def named(name: str, file: str, old: str, new: str) -> Mutant:
    """Return a named mutant; its text must be there, once."""
    text = (ROOT / file).read_bytes()
    assert text.count(old.encode()) == 1, f"{name}: {file} does not have {old!r} once; write the mutant anew"
    start = text.index(old.encode())
    return Mutant(name, file, start, start + len(old.encode()), new)


def test_named_mutants_are_of_the_text_as_it_is() -> None:
    for *fault, tests in NAMED:
        named(*fault)
        assert (ROOT / tests).exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", NAMED, ids=lambda case: case[0])
def test_a_named_mutant_is_killed(case: tuple[str, ...], tmp_path: Path) -> None:
    *fault, tests = case
    assert not survives(named(*fault), (tests,), tmp_path)


# Mechanical: of formulas, which are what functions compute, but for what they refuse, say, compare and index.

MUTANTS = 60
TRUNCATION = "sde_diffusion/likelihood.py: _truncation: "
EXPLAINED = {
    f"{TRUNCATION}4.0 → 4.04": "a power is fitted to any two levels of noise alike",
    f"{TRUNCATION}math.sqrt(factor) * ratio(t_start) → 1.01 * (math.sqrt(factor) * ratio(t_start))": "so it is",
    f"{TRUNCATION}0.05 → 0.0505": "where the search for that power begins, far below those that occur",
}
"""Survivors that are no faults, and why."""

MATHEMATICS = [f"sde_diffusion/{name}.py" for name in FLOORS if name not in ("errors", "terminal", "registry", "types")]
SCHEMES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("samplers/*.py"))
TESTS = tuple(
    f"tests/test_{name}.py"
    for name in (
        *("levels", "sdes", "timesteps", "analytic", "denoisers", "ode", "bounds", "objectives", "noise", "guidance"),
        *("samplers", "contracts", "brownian", "likelihood"),
    )
)
"""What tests the mathematics, the quick ones first."""


def formulas(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Yield the expressions that compute, each with the function that it is in."""

    def below(node: ast.AST, where: str) -> Iterator[tuple[str, ast.expr]]:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Compare | ast.arguments | ast.ClassDef | ast.FunctionDef):
            return
        if isinstance(node, ast.Call) and re.match("require|InputError", ast.unparse(node.func)):
            return
        if isinstance(node, ast.expr) and where:
            yield where, node
        for name, value in ast.iter_fields(node):
            if name not in ("slice", "annotation", "test"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from below(child, where or ("lambda" if isinstance(node, ast.Lambda) else ""))

    yield from below(ast.Module([n for n in tree.body if isinstance(n, ast.AnnAssign)], []), "")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            for statement in node.body:
                yield from below(statement, node.name)


def faults(node: ast.expr) -> Iterator[ast.expr]:
    """Yield what an expression is turned into: another sign, 1 % more, a factor less."""
    more = ast.Constant(1.01)
    match node:
        case ast.BinOp(left=ast.Constant(value=str()) | ast.JoinedStr()) | ast.BinOp(right=ast.JoinedStr()):
            return
        case ast.BinOp(op=ast.Add() | ast.Sub()):
            other = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
            yield ast.BinOp(node.left, other, node.right)
        case ast.BinOp(op=ast.Mult() | ast.Div()):
            yield ast.BinOp(more, ast.Mult(), node)
            yield node.left
            if isinstance(node.op, ast.Mult):
                yield node.right
        case ast.UnaryOp(op=ast.USub(), operand=ast.expr()):
            yield node.operand
        case ast.Constant(value=float(value)) if value:
            yield ast.Constant(1.01 * value)


def mechanical(file: str) -> Iterator[Mutant]:
    """Yield the mutants of a file."""
    text = (ROOT / file).read_bytes()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for where, node in formulas(ast.parse(text)):
        for fault in faults(node):
            start = starts[node.lineno - 1] + node.col_offset
            stop = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            name = f"{file}: {where}: {ast.unparse(node)} → {ast.unparse(fault)}"
            yield Mutant(name, file, start, stop, f"({ast.unparse(fault)})")


def chosen() -> list[Mutant]:
    """Return those whose names have the smallest hashes: at random, and an edit of one formula changes no other."""
    every = {mutant.name: mutant for file in (*MATHEMATICS, *SCHEMES) for mutant in mechanical(file)}
    return sorted(every.values(), key=lambda mutant: hashlib.sha256(mutant.name.encode()).digest())[:MUTANTS]


def first(file: str) -> tuple[str, ...]:
    """Return the tests with those first that are named as the file is, or of samplers."""
    own = f"tests/test_{Path(file).stem}.py" if file not in SCHEMES else "tests/test_samplers.py"
    return (own, *(test for test in TESTS if test != own)) if own in TESTS else TESTS


def test_mechanical_mutants_are_python() -> None:
    """Each is another program than the one it is made of, of the same file."""
    for mutant in chosen():
        text = (ROOT / mutant.file).read_bytes()
        fault = ast.parse(text[: mutant.start] + mutant.new.encode() + text[mutant.stop :])
        assert ast.dump(fault) != ast.dump(ast.parse(text)), mutant.name


@pytest.mark.slow
def test_few_mechanical_mutants_survive(tmp_path: Path) -> None:
    """At most 3 of 60, and of each it is known why."""
    passed, text = run_tests(copy_tree(tmp_path / "whole"), TESTS)
    assert passed, text  # else nothing were proved
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        alive = list(pool.map(lambda mutant: survives(mutant, first(mutant.file), tmp_path), chosen()))
    survivors = [mutant.name for mutant, lives in zip(chosen(), alive, strict=True) if lives]
    assert not set(survivors) - EXPLAINED.keys(), "tests are missing"
    assert len(survivors) <= 3
