"""Every finding in findings.toml names a test that exists, or the reason for a decision."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FINDINGS = tomllib.loads((ROOT / "tests" / "findings.toml").read_text(encoding="utf-8")).get("finding", [])


def _tests_of(path: Path) -> frozenset[str]:
    """Returns the test functions of a Python file, or the titles of the tests of a TypeScript file."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        nodes = ast.walk(ast.parse(text))
        return frozenset(
            node.name
            for node in nodes
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        )
    return frozenset(match[2] for match in re.finditer(r"\b(?:test|it)\(\s*(['\"`])(.*?)\1", text))


@pytest.mark.parametrize("finding", FINDINGS, ids=lambda finding: str(finding.get("id")))
def test_a_finding_has_a_test_that_exists_or_a_reason(finding: dict[str, str]) -> None:
    assert finding["id"]
    assert finding["says"]
    assert ("test" in finding) != ("reason" in finding), "either a test or a reason"
    if "test" in finding:
        path, _, name = finding["test"].partition("::")
        assert (ROOT / path).is_file(), f"{path} does not exist"
        assert name in _tests_of(ROOT / path), f"{path} has no test {name!r}"
    else:
        assert finding["reason"].endswith(".")


def test_a_finding_is_listed_once() -> None:
    ids = [finding["id"] for finding in FINDINGS]
    assert sorted(set(ids)) == sorted(ids)
