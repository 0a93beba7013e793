"""Checks the sizes of files, functions and folders, and the banned words of CONTRIBUTING.md.

Usage: `python -m tools.check_style [paths]`. Without paths it checks the whole tree. Exits with 1 when it finds anything.
"""

import ast
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.banned_words import ALLOWED, IDENTIFIERS, ONLY_IN, PHRASES, WORDS

MAX_FILE_LINES = 250
MAX_FUNCTION_LINES = 50
MAX_FOLDER_FILES = 15

ROOTS = ("app", "steering", "tests", "benchmarks", "examples", "docs", "tools")
PAGES = ("README.md", "CONTRIBUTING.md")
EXCLUDED = (
    "app/static/",
    "app/web/node_modules/",
    "app/web/dist/",
    "app/web/src/api/schema.ts",
    "steering/store/sql/migrations/versions/",
)
"""Generated files, and migrations: they are written once and never edited."""
SOURCES = frozenset({".py", ".cpp", ".h", ".ts", ".tsx"})
BRACED = SOURCES - {".py"}
STRINGS_UNCHECKED = ("tests/", "examples/", "tools/")
"""Folders whose string literals are prompts and test data. Their docstrings are checked."""

_TYPE_START = re.compile(r"(?:export )?(?:default )?(?:namespace|struct|class|enum|union|interface|type|extern)\b")
_WORD = re.compile(r"[A-Za-z]+")
_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


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
    return findings + [
        Finding(folder, 0, f"{count} Python files, at most {MAX_FOLDER_FILES}")
        for folder, count in _folders(root).items()
        if count > MAX_FOLDER_FILES and (not paths or folder.startswith(tuple(path.rstrip("/") for path in paths)))
    ]


def check_file(path: str, text: str) -> list[Finding]:
    """Returns the findings of one file. `path` is relative to the root of the repository."""
    suffix = Path(path).suffix
    found = [Finding(path, line, message) for line, message in _banned(path, text)]
    if suffix not in SOURCES:
        return found
    lines = text.count("\n")
    if lines > MAX_FILE_LINES:
        found.append(Finding(path, 1, f"{lines} lines, at most {MAX_FILE_LINES}"))
    functions = _python_functions(text) if suffix == ".py" else _braced_functions(text)
    for name, line, length in functions:
        if length > MAX_FUNCTION_LINES:
            found.append(Finding(path, line, f"{name} has {length} lines, at most {MAX_FUNCTION_LINES}"))
    return found


def _files(root: Path) -> Iterator[str]:
    for page in PAGES:
        if (root / page).exists():
            yield page
    for folder in ROOTS:
        for path in sorted((root / folder).rglob("*")):
            name = path.relative_to(root).as_posix()
            if path.suffix in SOURCES | {".md"} and not name.startswith(EXCLUDED) and path.is_file():
                yield name


def _folders(root: Path) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in _files(root):
        path = Path(name)
        if path.suffix == ".py" and path.name != "__init__.py":
            counts[path.parent.as_posix()] += 1
    return counts


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


def _banned(path: str, text: str) -> Iterator[tuple[int, str]]:
    for line, kind, value in _fragments(path, text):
        if kind == "identifier":
            if value in IDENTIFIERS:
                yield line, f"{value!r}: {IDENTIFIERS[value]}"
            words = _PARTS.findall(value)
        else:
            words = _WORD.findall(value)
            for phrase, better in PHRASES.items():
                if re.search(rf"\b{phrase}\b", value, re.IGNORECASE) and (path, phrase) not in ALLOWED:
                    yield line, f"{phrase!r}: {better}"
        for word in dict.fromkeys(each.lower() for each in words):
            if word in WORDS and (path, word) not in ALLOWED and path.startswith(ONLY_IN.get(word, "")):
                yield line, f"{word!r}: {WORDS[word]}"


_QUOTED = re.compile("<!-- generated: pairs -->.*?<!-- end: pairs -->", re.DOTALL)
"""Answers that a model wrote, on a page of docs."""


def _fragments(path: str, text: str) -> Iterator[tuple[int, str, str]]:
    """Yields (line, "identifier" or "prose", text)."""
    if not path.endswith(".py"):
        for number, line in enumerate(_QUOTED.sub(lambda found: "\n" * found[0].count("\n"), text).splitlines(), 1):
            yield number, "prose", " ".join(_PARTS.findall(line)) if Path(path).suffix in BRACED else line
        return
    docstrings = set(_docstring_lines(text))
    for token in tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__):
        kind = tokenize.tok_name[token.type]
        if kind == "NAME":
            yield token.start[0], "identifier", token.string
        elif kind == "COMMENT" or (
            kind in {"STRING", "FSTRING_MIDDLE"}
            and (token.start[0] in docstrings or not path.startswith(STRINGS_UNCHECKED))
        ):
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, "prose", line


def _docstring_lines(text: str) -> Iterator[int]:
    """Yields the first line of every string that stands as a statement: docstrings, and the texts below constants."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno


def report(findings: Sequence[Finding]) -> str:
    """Formats findings by folder, with the number of findings of each."""
    folders: dict[str, list[Finding]] = defaultdict(list)
    for finding in findings:
        folders["/".join(finding.path.split("/")[:2])].append(finding)
    lines: list[str] = []
    for folder in sorted(folders):
        lines.append(f"{folder}: {len(folders[folder])}")
        lines += [f"  {one.path}:{one.line}: {one.message}" for one in folders[folder]]
    return "\n".join([*lines, f"{len(findings)} findings"])


def main() -> int:
    """Prints the findings of the tree this file belongs to."""
    findings = check_tree(Path(__file__).resolve().parent.parent, sys.argv[1:])
    sys.stdout.write(report(findings) + "\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
