"""findings.toml and security.toml: every defect names a test that exists, or the reason for a decision."""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = ("findings.toml", "security.toml")
FINDINGS = [
    finding
    for name in FILES
    for finding in tomllib.loads((ROOT / "tests" / name).read_text(encoding="utf-8")).get("finding", [])
]


@cache
def _tests_of(path: Path) -> frozenset[str]:
    """Returns the test functions of a Python file, or the titles of the tests of a TypeScript file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        functions = (
            node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        )
        return frozenset(function.name for function in functions if function.name.startswith("test_"))
    return frozenset(match[2] for match in re.finditer(r"\b(?:test|it)\(\s*(['\"`])(.*?)\1", text))


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: str(finding.get("id")))
def test_a_finding_has_tests_that_exist_or_a_reason(finding: dict[str, Any]) -> None:
    assert finding["says"]
    tests = [finding["test"]] if "test" in finding else finding.get("tests", [])
    assert bool(tests) != ("reason" in finding), "either tests or a reason"
    for test in tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), f"{path} does not exist"
        assert name in _tests_of(ROOT / path), f"{path} has no test {name!r}"
    if not tests:
        assert re.fullmatch(r".{20,}\.", finding["reason"])


def test_a_finding_is_listed_once() -> None:
    ids = [finding["id"] for finding in FINDINGS]
    assert sorted(set(ids)) == sorted(ids)


def test_every_class_of_security_defects_is_listed() -> None:
    expected = {f"S{number}" for number in range(1, 35)} | {f"T{number}" for number in range(1, 41)}
    assert expected <= {finding["id"] for finding in FINDINGS}
