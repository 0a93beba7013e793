"""Checks the sizes of files and functions.

Usage: `python -m tools.check_style [paths]`. Without paths it checks the whole tree. Exits with 1 when it finds anything.
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 80

ROOTS = ("app", "steering", "tests", "benchmarks", "examples", "tools")
EXCLUDED = (
    "app/static/",
    "app/web/node_modules/",
    "app/web/dist/",
    "app/web/src/api/schema.ts",
    "steering/store/migrations/versions/",
)
"""Generated files, and migrations: they are written once and never edited."""
SOURCES = frozenset({".py", ".cpp", ".h", ".ts", ".tsx"})

_TYPE_START = re.compile(r"(?:export )?(?:default )?(?:namespace|struct|class|enum|union|interface|type|extern)\b")


@dataclass(frozen=True, slots=True)
class Finding:
    """One violation at one line of one file."""

    path: str
    line: int
    message: str


def check_tree(root: Path, paths: Sequence[str] = ()) -> list[Finding]:
    """Returns the findings of all files under `root`, or of those whose path starts with one of `paths`."""
    findings: list[Finding] = []
    for path in _files(root):
        if not paths or path.startswith(tuple(paths)):
            findings += check_file(path, (root / path).read_text(encoding="utf-8"))
    return findings


def check_file(path: str, text: str) -> list[Finding]:
    """Returns the findings of one source file. `path` is relative to the root of the repository."""
    findings = []
    lines = text.count("\n")
    if lines > MAX_FILE_LINES:
        findings.append(Finding(path, 1, f"{lines} lines, at most {MAX_FILE_LINES}"))
    functions = _python_functions(text) if path.endswith(".py") else _braced_functions(text)
    for name, line, length in functions:
        if length > MAX_FUNCTION_LINES:
            findings.append(Finding(path, line, f"{name} has {length} lines, at most {MAX_FUNCTION_LINES}"))
    return findings


def _files(root: Path) -> Iterator[str]:
    for folder in ROOTS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.suffix in SOURCES and not name.startswith(EXCLUDED) and path.is_file():
                yield name


def _python_functions(text: str) -> Iterator[tuple[str, int, int]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def _braced_functions(text: str) -> Iterator[tuple[str, int, int]]:
    """Yields the functions at the outermost level of a C++ or TypeScript file that a formatter has formatted.

    Such a function starts at column 0 and ends at the next closing brace in column 0.
    """
    start, header = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("}"):
            signature = header.partition("{")[0]
            if start and "(" in signature and not _TYPE_START.match(header):
                yield signature.partition("(")[0].split()[-1], start, number - start + 1
            start, header = 0, ""
        elif line[:1].strip() and not line.startswith(("#", "//", "/*", "*", ")", "import ")):
            start, header = number, line
            if line.rstrip().endswith((";", "{}")) or line.startswith("namespace"):
                start, header = 0, ""
        elif start and "{" not in header:
            header += line


def main() -> int:
    """Prints the findings of the tree this file belongs to."""
    findings = check_tree(Path(__file__).resolve().parent.parent, sys.argv[1:])
    lines = [f"{finding.path}:{finding.line}: {finding.message}" for finding in findings]
    sys.stdout.write("\n".join([*lines, f"{len(findings)} findings"]) + "\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
