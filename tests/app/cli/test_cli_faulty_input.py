"""Commands that are given files which they cannot read, or an address at which nobody listens: one line, no traceback."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from app.cli.commands import read_texts
from app.cli.main import main
from app.cli.model import texts_and_labels
from steering.client import Client
from tests.app.cli.conftest import Steer
from tests.app.running import running

NOBODY = 65534
LATIN = "text,label\ncafé,1\n".encode("latin-1")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as found:
        with Client(found) as client:
            client.register_vector("mood", {"1": [1.0] * 8})
        yield found


@pytest.mark.parametrize(
    "arguments",
    [
        ("map", "FILE", "--out", "map.html"),
        ("test", "mood", "FILE"),
        ("extract", "x", "--pairs", "FILE"),
        ("extract", "x", "--positive", "FILE", "--negative", "FILE"),
        ("evaluate", "mood", "--prompts", "FILE"),
        ("explain", "--file", "FILE"),
        ("replay", "FILE"),
        ("generate", "x", "--steering", "@FILE"),
        ("policy", "set", "FILE"),
    ],
)
def test_a_file_in_another_encoding_is_named(steer: Steer, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    file = tmp_path / "latin.csv"
    file.write_bytes(LATIN)
    _, error = steer(*(one.replace("FILE", str(file)) for one in arguments), code=1)
    assert "latin.csv is not UTF-8 text (byte 14)" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ("map", "FILE", "--out", "map.html"),
        ("test", "mood", "FILE"),
        ("extract", "x", "--pairs", "FILE"),
    ],
)
def test_a_cell_that_is_too_long_is_named(steer: Steer, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    file = tmp_path / "long.csv"
    file.write_text(f"text,label\nshort,1\n{'a' * 131_073},0\n", encoding="utf-8")
    _, error = steer(*(one.replace("FILE", str(file)) for one in arguments), code=1)
    assert "long.csv, line 3: not readable as CSV: field larger than field limit (131072)" in error


def test_a_line_of_json_may_contain_other_separators_of_lines(steer: Steer, tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    text = "one\u2028two\x85three"
    file.write_bytes(f'\r\n"{text}"\r\n'.encode())
    assert read_texts(file) == [text]
    (tmp_path / "lines.txt").write_text(f"{text}\ffour\n\nfive\n", encoding="utf-8")
    assert texts_and_labels(tmp_path / "lines.txt") == ([f"{text}\ffour", "five"], None)
    question = {"question": "a\u2028b?", "choices": ["yes", "no"], "answer": 0}
    file.write_text(json.dumps(question, ensure_ascii=False) + "\n", encoding="utf-8")
    assert "1 questions" in steer("choices", str(file))[0]


@pytest.mark.parametrize("arguments", [("explain", "--file", "FILE"), ("choices", "FILE")])
def test_blank_lines_are_counted(steer: Steer, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text("\n\nno JSON\n", encoding="utf-8")
    _, error = steer(*(one.replace("FILE", str(file)) for one in arguments), code=1)
    assert "lines.jsonl, line 3 is not valid JSON" in error


@pytest.mark.parametrize(
    ("arguments", "head", "rows"),
    [
        (("test", "mood", "FILE"), "text,label", ['"one\ntwo",1', "good,0", "x,what"]),
        (("extract", "x", "--pairs", "FILE"), "positive,negative", ['"one\ntwo",bad', "good,bad", ",bad"]),
    ],
)
def test_a_row_is_named_by_its_line_also_behind_cells_of_many_lines(
    steer: Steer, tmp_path: Path, arguments: tuple[str, ...], head: str, rows: list[str]
) -> None:
    file = tmp_path / "rows.csv"
    for blank, line in (("", 5), ("\n", 6)):
        file.write_text("\n".join([head, *rows[:-1], blank + rows[-1]]), encoding="utf-8")
        _, error = steer(*(one.replace("FILE", str(file)) for one in arguments), code=1)
        assert f"rows.csv, line {line}: " in error


@pytest.mark.parametrize("position", ["--5", "²", "9" * 5000])
def test_a_position_that_is_none_is_refused_by_the_server(steer: Steer, tmp_path: Path, position: str) -> None:
    _, error = steer("activations", "x", f"--position={position}", "-o", str(tmp_path / "x.safetensors"), code=1)
    assert "position" in error


@pytest.mark.parametrize("content", ["no JSON", "[1]", "[]", "3", '{"steering": 1}', '{"steering": {"record": 1}}'])
def test_a_record_that_is_none_is_refused(steer: Steer, tmp_path: Path, content: str) -> None:
    record = tmp_path / "record.json"
    record.write_text(content, encoding="utf-8")
    assert "record.json" in steer("replay", str(record), code=1)[1]


@pytest.mark.parametrize("content", ["no JSON", "[1]", "3"])
def test_directions_that_are_none_are_refused(steer: Steer, tmp_path: Path, content: str) -> None:
    record, directions = tmp_path / "record.json", tmp_path / "directions.json"
    record.write_text(steer("generate", "x", "--json")[0], encoding="utf-8")
    directions.write_text(content, encoding="utf-8")
    assert "directions.json" in steer("replay", str(record), "--directions", str(directions), code=1)[1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("generate", "x", "--steer", "mood=nan"), "expected NAME=STRENGTH with a finite number, got 'mood=nan'"),
        (("generate", "x", "--hold", "mood=inf"), "expected NAME=SCORE with a finite number, got 'mood=inf'"),
        (("generate", "x", "--steering", '[{"vector": "mood", "strength": NaN}]'), "not valid JSON: NaN is not finite"),
        (("generate", "x", "--steering", '["mood"]'), "expected an intervention or a list of them, each an object"),
        (("generate", "x", "--temperature", "nan"), "temperature: expected a finite number, got nan"),
        (("sweep", "mood", "x", "--strengths", "0,nan"), "expected finite numbers separated by commas, got '0,nan'"),
        (("evaluate", "mood", "--strengths", "nan"), "expected finite numbers separated by commas, got 'nan'"),
        (("explain", "x", "--threshold", "-inf"), "threshold: expected a finite number, got -inf"),
        (("generate", "caf\udce9"), "prompt: expected UTF-8 text, got '\\udce9' in it"),
        (("explain", "x", "caf\udce9"), "texts: expected UTF-8 text, got '\\udce9' in it"),
        (("vectors", "list", "--key", "café"), "key: expected ASCII text, got 'é' in it"),
    ],
)
def test_what_cannot_be_sent_is_named(steer: Steer, arguments: tuple[str, ...], expected: str) -> None:
    _, error = steer(*arguments, code=2)
    assert expected in " ".join(error.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("screen", "FILE", "--vector", "mood", "--out", "OUT"),
        ("batch", "FILE", "--out", "OUT"),
        ("report", "mood", "--out", "OUT"),
        ("report", "mood", "--items", "OUT"),
        ("evaluate", "mood", "--items", "OUT"),
        ("activations", "x", "--output", "OUT"),
        ("map", "FILE", "--out", "OUT"),
        ("card", "mood", "--out", "OUT"),
        ("vectors", "export", "mood", "--output", "OUT"),
    ],
)
def test_a_folder_that_is_missing_is_named_before_anything_is_sent(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "in.jsonl").touch()
    names = {"FILE": str(tmp_path / "in.jsonl"), "OUT": str(tmp_path / "missing" / "out.html")}
    with pytest.raises(SystemExit) as ended:
        main([*(names.get(one, one) for one in arguments), "--url", "http://127.0.0.1:1"])
    assert ended.value.code == 2
    assert "is no folder that can be written" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@contextmanager
def nobody() -> Iterator[None]:
    """Asks for access as a user who may write no folder of root's, where the tests run as root."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(NOBODY, 0, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_file_that_is_there_is_written_in_any_folder(steer: Steer) -> None:
    """Only root may make a file in /dev, and everybody writes to /dev/stdout."""
    with TemporaryDirectory() as name:  # pytest's own folders lie in one that only their user may enter
        file, new = Path(name, "card.html"), Path(name, "new.html")
        file.touch()
        file.chmod(0o666)
        Path(name).chmod(0o555)
        with nobody():
            steer("card", "mood", "--out", str(new), code=2)
            steer("card", "mood", "--out", str(file))
        assert file.read_text(encoding="utf-8")
        assert not new.exists()
        Path(name).chmod(0o755)


def test_a_refused_connection_names_the_address(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["keys", "list", "--url", "http://someone:secret@127.0.0.1:1"])
    error = capsys.readouterr().err
    assert ended.value.code == 1
    assert "the server at http://127.0.0.1:1 could not be reached" in error
    assert "secret" not in error


def test_a_cell_with_a_line_break_is_one_text(steer: Steer, tmp_path: Path) -> None:
    file = tmp_path / "texts.csv"
    file.write_text('text\n"one\ntwo"\nthree\nfour\nfive\n', encoding="utf-8")
    out = tmp_path / "map.html"
    steer("map", str(file), "--out", str(out), "--layers", "1")
    assert json.dumps("one\ntwo")[1:-1] in out.read_text(encoding="utf-8")
