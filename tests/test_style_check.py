"""The style check finds each kind of violation, and reports the line where it stands."""

from pathlib import Path

import pytest

from tools.check_style import Finding, check_file, check_tree, report


def _messages(path: str, text: str) -> list[tuple[int, str]]:
    return [(one.line, one.message.partition(":")[0]) for one in check_file(path, text)]


def test_it_finds_a_banned_word_in_a_name_a_comment_a_docstring_and_a_message() -> None:
    text = '"""Reads a heap."""\n\n\ndef old_wish() -> str:\n    return "a stranger"  # the lender\n'
    assert _messages("app/module.py", text) == [(1, "'heap'"), (4, "'wish'"), (5, "'stranger'"), (5, "'lender'")]


def test_string_literals_of_tests_are_data() -> None:
    text = '"""Checks."""\n\nPROMPT = "the door of the house"\n'
    assert _messages("tests/module.py", text) == []
    assert _messages("app/module.py", text) == [(3, "'door'"), (3, "'house'")]


@pytest.mark.parametrize("name", ["HeapWalker", "heap_walker", "THE_HEAP", "readHeap"])
def test_words_are_found_inside_identifiers(name: str) -> None:
    assert _messages("app/module.py", f"{name} = 1\n") == [(1, "'heap'")]


def test_a_word_inside_a_longer_word_is_not_a_violation() -> None:
    assert _messages("docs/page.md", "headroom, released, indoors, cheap\n") == []


def test_phrases_are_found_whatever_their_case() -> None:
    assert _messages("docs/page.md", "Models on the wire\nfiles At Rest\n") == [(1, "'on the wire'"), (2, "'at rest'")]


def test_a_long_file_and_a_long_function_are_found() -> None:
    body = "".join(f"    x{index} = {index}\n" for index in range(260))
    found = _messages("app/module.py", f"def long() -> None:\n{body}")
    assert found == [(1, "261 lines, at most 250"), (1, "long has 261 lines, at most 50")]


def test_functions_of_cpp_and_typescript_are_measured() -> None:
    body = "".join("  x += 1;\n" for _ in range(60))
    cpp = f"namespace {{\n\nstruct Tile {{\n{body}}};\n\nvoid attend(\n    int x) {{\n{body}}}\n\n}}  // namespace\n"
    assert _messages("steering/kernel.cpp", cpp) == [(66, "attend has 63 lines, at most 50")]
    typescript = f"import {{ h }} from 'preact';\n\nexport function draw(x: number) {{\n{body}}}\n"
    assert _messages("app/web/draw.ts", typescript) == [(3, "draw has 62 lines, at most 50")]


def test_a_folder_with_too_many_files_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "app" / "many"
    folder.mkdir(parents=True)
    for index in range(16):
        (folder / f"module_{index}.py").write_text('"""A module."""\n')
    (folder / "__init__.py").write_text("")
    assert check_tree(tmp_path) == [Finding("app/many", 0, "16 Python files, at most 15")]
    assert check_tree(tmp_path, ["app/many/"]) == check_tree(tmp_path)
    assert check_tree(tmp_path, ["app/other"]) == []


def test_findings_are_reported_by_folder() -> None:
    findings = [Finding("app/http/a.py", 3, "first"), Finding("docs/b.md", 1, "second")]
    assert report(findings) == "app/http: 1\n  app/http/a.py:3: first\ndocs/b.md: 1\n  docs/b.md:1: second\n2 findings"
