"""The pages by which a reader enters the code name files, symbols and registrations that exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from steering.conditions import CONDITIONS
from steering.engine import ENGINES
from steering.extraction import METHODS
from steering.operations import OPERATIONS
from steering.projection import PROJECTIONS

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/lifecycle.md", "docs/extending.md", "steering/engine/README.md")
FOLDERS = ("app", "steering", "tests", "docs", "benchmarks", "deploy", "tools", "examples")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*")
_IN_FILE = re.compile(r"`([A-Za-z_][\w.]*)`(?: of each operation)?\s+in\s+`([\w/]+\.py)`")
_MADE = ("app/static", "docs/openapi.json")
"""What is generated."""


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@cache
def _symbols(path: Path) -> frozenset[str]:
    """Returns the names that a file defines: `name`, and `Class.method`."""
    names: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                names.add(prefix + node.name)
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.update((prefix + node.name, node.name))
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    visit(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(names)


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    paths = [code for code in _CODE.findall(_text(page)) if _PATH.fullmatch(code) and not code.startswith(_MADE)]
    missing = [path for path in paths if "<" not in path and not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_every_symbol_is_in_the_file_named_with_it(page: str) -> None:
    for symbol, path in _IN_FILE.findall(_text(page)):
        assert symbol in _symbols(ROOT / path), f"{path} has no {symbol}"


def test_the_questions_of_a_newcomer_have_a_place() -> None:
    """What an outside reader asked first; each answer is one row of CONTRIBUTING.md with a file."""
    rows = [
        line
        for line in _text("CONTRIBUTING.md").splitlines()
        if line.startswith("| Where") or line.startswith("| What")
    ]
    for topic in (
        "sampled", "residual units", "tokens an intervention acts", "dose", "disconnected", "memory of keys and values",
        "compiled graph", "stop string", "operation, a condition, a method, a route", "the page Play",
    ):  # fmt: skip
        assert any(topic in row and ("`" in row or "](" in row) for row in rows), topic


@pytest.mark.parametrize("folder", ["app", "steering"])
def test_the_map_names_every_folder(folder: str) -> None:
    page = _text("CONTRIBUTING.md")
    folders = [path.name for path in (ROOT / folder).iterdir() if path.is_dir() and any(path.rglob("*.py"))]
    known = set(re.findall(r"`(?:app/|steering/)?(\w+)`", page))
    assert set(folders) - {"static", "__pycache__"} <= known


@pytest.mark.parametrize(
    ("entry", "table"),
    [
        ("operation", OPERATIONS),
        ("condition", CONDITIONS),
        ("extraction method", METHODS),
        ("projection", PROJECTIONS),
        ("engine", ENGINES),
    ],
)
def test_the_table_of_registrations_names_the_registry_of_every_extension_point(entry: str, table: object) -> None:
    name = next(
        name
        for module in ("operations", "conditions", "extraction", "projection", "engine")
        for name, value in vars(__import__(f"steering.{module}", fromlist=["x"])).items()
        if value is table
    )
    row = next(line for line in _text("docs/extending.md").splitlines() if line.startswith(f"| {entry} |"))
    assert f"`{name}`" in row


def test_the_table_names_what_the_tests_demand_of_a_route_and_of_an_operation() -> None:
    """These registrations were demanded by tests and stood on no page."""
    page = _text("docs/extending.md")
    route = next(line for line in page.splitlines() if line.startswith("| route |"))
    for needed in ("ROUTERS", "docs/api.md", "steering/client", "make openapi", "tests/app/policy"):
        assert needed in route, needed
    for needed in ("InterventionSpec", "AppliedIntervention", "app/web/src/words.json", "mathematics"):
        assert needed in page, needed
