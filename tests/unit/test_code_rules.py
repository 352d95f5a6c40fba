"""Rules of the house that no linter checks: sizes of functions and modules, bans by room, tidy top level."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SOURCES = sorted((PROJECT / "pvetools").rglob("*.py"))
LONGEST_FUNCTION = 80
LONGEST_MODULE = 700
TOP_LEVEL = {
    ".ci", ".git", ".gitignore", "LICENSE", "Makefile", "README.md", "completions", "man", "pvetools", "pyproject.toml",
    "systemd", "tests",
}  # fmt: skip
LEFT_BY_TOOLS = {
    ".venv",
    ".hypothesis",
    ".mypy_cache",
    ".ruff_cache",
    ".import_linter_cache",
    "build",
    "pvetools.egg-info",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def called_names(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_function_is_longer_than_a_screen(path):
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(path) if f.end_lineno - f.lineno >= LONGEST_FUNCTION}
    assert not long


@pytest.mark.parametrize("path", [p for p in SOURCES if "options" not in p.parts], ids=name_of)
def test_no_module_is_a_novel(path):
    assert len(path.read_text().splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("path", [p for p in SOURCES if not {"cli", "render"} & set(p.parts)], ids=name_of)
def test_only_the_entry_layer_prints_and_exits(path):
    assert not called_names(path) & {"print", "sys.exit", "exit"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_shell_is_ever_started(path):
    text = path.read_text()
    assert "shell=True" not in text
    assert not called_names(path) & {"os.system", "os.popen"}


def test_the_top_level_holds_only_what_belongs_there():
    assert {p.name for p in PROJECT.iterdir()} - LEFT_BY_TOOLS <= TOP_LEVEL
