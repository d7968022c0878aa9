"""The floors: a file imports only from lower ones; samplers need a part of the core; nothing below imports the roof."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {
    "errors": 0, "terminal": 0, "ops": 0, "registry": 0, "levels": 0, "types": 0, "noise": 0, "brownian": 0,
    "memory": 0,
    "sdes": 1,
    "labels": 2, "predictions": 2, "denoisers": 2, "timesteps": 2, "ode": 2,
    "reverse": 3, "analytic": 3, "bounds": 3,
    "likelihood": 4,
}  # fmt: skip
"""The mathematics, by floor; all other modules of sde_diffusion are the workshop."""
FOR_SAMPLERS = {name for name, floor in FLOORS.items() if floor < 3} | {"reverse"}
ROOF = {"config", "stored_config", "pretrained", "runs", "commands", "__main__"}
FILES = sorted([*ROOT.glob("sde_diffusion/**/*.py"), *ROOT.glob("samplers/*.py")])


def imports(path: Path) -> set[str]:
    """Return the dotted modules that a file imports at run time, also inside functions (TYPE_CHECKING left out)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and isinstance(test.test, ast.Name) and test.test.id == "TYPE_CHECKING"
        for node in ast.walk(test)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def core(module: str) -> str | None:
    """Return the part of sde_diffusion that a module belongs to: its file or folder at the root."""
    parts = module.split(".")
    return parts[1] if parts[0] == "sde_diffusion" and len(parts) > 1 else None


def place(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if len(parts) > 1 else parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_floors(path: Path) -> None:
    here, modules = place(path), imports(path)
    parts = {part for m in modules if (part := core(m))} & {p.stem for p in ROOT.glob("sde_diffusion/*")}
    if path.parent.name == "samplers":
        assert parts <= FOR_SAMPLERS
        return
    if here not in ROOF:
        assert not parts & ROOF
        assert not any(m.split(".")[0] == "samplers" for m in modules)
    if here in ("data", "codecs"):
        assert parts <= {name for name, floor in FLOORS.items() if floor == 0} | {"data", here}
    if here in ("networks", "objectives", "training"):
        assert "codecs" not in parts, "what is trained is handed data in model space"
    if here == "objectives":
        assert parts <= {name for name, floor in FLOORS.items() if floor <= 3} | {"objectives"}
    if here == "evaluation":
        assert "objectives" not in parts
    if here in FLOORS:
        assert parts <= FLOORS.keys(), "mathematics must not need the workshop"
        assert all(FLOORS[p] <= FLOORS[here] for p in parts)


def test_no_cycle() -> None:
    graph = {str(p.relative_to(ROOT).with_suffix("")).replace("/", "."): imports(p) for p in FILES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"cycle: {' → '.join([*trail, module])}"
        if module in graph and module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        if not module.endswith("__init__"):
            visit(module, ())


def test_house_rules() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert path.stem != "utils"
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        statements = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Assert)]
        assert not statements, f"{path}: library code raises, it does not assert"


def test_no_private_name_is_used_across_files() -> None:
    """Neither imported, nor read off a module that was imported."""
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("sde_diffusion", "samplers"):
                names = {alias.name for alias in node.names}
                assert not [n for n in names if n.startswith("_") and not n.startswith("__")], path
                modules |= {alias.asname or alias.name for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                assert not private, f"{path}: {node.value.id}.{node.attr}"


def test_no_class_has_the_name_of_another() -> None:
    found: dict[str, Path] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert node.name not in found, f"class {node.name} in {found[node.name]} and in {path}"
                found[node.name] = path


def test_functions_can_be_read() -> None:
    """None of more than 60 lines from its signature on, docstring included; more is several things."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{path}: {node.name} has {length} lines"
