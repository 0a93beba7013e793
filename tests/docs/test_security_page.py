"""The table of docs/security.md: every line is there once, and every test that it names exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES = [f"S{number}" for number in range(1, 35)] + [f"T{number}" for number in range(1, 41)]
ROW = re.compile(r"\| ([ST]\d+) \| ([^|]+) \| (.+) \|")
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows() -> list[tuple[str, str]]:
    """Returns (number, tests or reason) of every row."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8").splitlines()
    return [(found[1], found[3]) for line in page if (found := ROW.fullmatch(line))]


def names_in(file: Path) -> set[str]:
    """Returns the names of the tests of a file, those inside classes included."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {name for name in found if name.startswith("test_")}


def test_every_number_has_one_row() -> None:
    assert [number for number, _ in rows()] == LINES


def test_every_row_names_tests_that_exist_or_a_reason() -> None:
    for number, text in rows():
        named = NAMED.findall(text)
        assert named or re.fullmatch(r"none: .{20,}", text), number
        assert len(named) == text.count("::"), f"{number}: a test is named as `path::name`"
        for path, name in named:
            assert (ROOT / path).is_file(), f"{number}: {path}"
            assert name in names_in(ROOT / path), f"{number}: {path}::{name}"
