"""The style check finds each kind of violation, and reports the line where it stands."""

from pathlib import Path

from tools.check_style import check_file, check_tree


def _messages(path: str, text: str) -> list[tuple[int, str]]:
    return [(finding.line, finding.message) for finding in check_file(path, text)]


def test_a_long_file_and_a_long_function_are_found() -> None:
    body = "".join(f"    x{index} = {index}\n" for index in range(601))
    found = _messages("app/module.py", f"def long() -> None:\n{body}")
    assert found == [(1, "602 lines, at most 600"), (1, "long has 602 lines, at most 80")]


def test_functions_of_cpp_and_typescript_are_measured() -> None:
    body = "".join("  x += 1;\n" for _ in range(90))
    cpp = f"namespace {{\n\nstruct Tile {{\n{body}}};\n\nvoid attend(\n    int x) {{\n{body}}}\n\n}}  // namespace\n"
    assert _messages("steering/kernel.cpp", cpp) == [(96, "attend has 93 lines, at most 80")]
    typescript = f"import {{ h }} from 'preact';\n\nexport function draw(x: number) {{\n{body}}}\n"
    assert _messages("app/web/draw.ts", typescript) == [(3, "draw has 92 lines, at most 80")]


def test_the_tree_is_searched_by_path(tmp_path: Path) -> None:
    folder = tmp_path / "app" / "long"
    folder.mkdir(parents=True)
    (folder / "module.py").write_text("x = 1\n" * 601)
    assert [finding.path for finding in check_tree(tmp_path)] == ["app/long/module.py"]
    assert check_tree(tmp_path, ["app/long/"]) == check_tree(tmp_path)
    assert check_tree(tmp_path, ["app/other"]) == []
