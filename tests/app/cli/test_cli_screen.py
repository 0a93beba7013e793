"""`steer screen`: every example of a training file gets its projections, whatever its form; those that lean most come first."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli.main import main
from app.cli.screen import AT_ONCE, example_of
from steering.client import Client
from steering.errors import InvalidRequest
from tests.app.cli.conftest import Steer
from tests.app.openai.test_phases import Thinker
from tests.app.running import running
from tests.fakes import ScriptedEngine
from tests.scripted_model import planted_direction


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(Thinker()) as found, Client(found) as client:
        for name, scale in (("mood", 2.0), ("against", -2.0), ("flat", 1e9)):
            direction = torch.sign(torch.tensor(scale)) * planted_direction()
            client.register_vector(name, {"2": direction.tolist()}, scale={"2": abs(scale)})
        yield found


CALL: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "find", "arguments": "{}"}}],
}
RETURNED = {"role": "tool", "tool_call_id": "1", "content": "found"}


def messages(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def test_examples_are_sorted_by_the_projection_of_their_answers(steer: Steer, tmp_path: Path) -> None:
    """A prompt does not count, and an example that the model cannot read leaves the others."""
    examples: list[Any] = [
        {"prompt": "Well?", "completion": "a bad day"},
        {"messages": messages("a day", "a good day", "a night", "good good good")},
        {"instruction": "Say", "input": "something", "output": "a day"},
        "a" * 5000,
        *[f"a day {number}" for number in range(2 * AT_ONCE)],
    ]
    data, out = tmp_path / "data.jsonl", tmp_path / "screened.jsonl"
    data.write_text("\n\n".join(map(json.dumps, examples)), encoding="utf-8")
    common = ("screen", str(data), "--vector", "mood", "--vector", "against@1", "--out", str(out))
    printed, error = steer(*common, "--threshold", "5")
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows[0]["line"] == 3, "blank lines are counted"
    assert rows[0]["z"]["mood"] > 5
    assert rows[0]["z"]["mood"] == pytest.approx(-rows[0]["z"]["against@1"], rel=1e-3)
    assert [row["line"] for row in rows[-2:]] == [1, 7], "the one that cannot be read is last"
    assert "tokens" in rows[-1]["error"]
    assert [row["z"]["mood"] for row in rows[:-1]] == sorted((row["z"]["mood"] for row in rows[:-1]), reverse=True)
    assert len({row["line"] for row in rows}) == len(examples)
    assert f"1 of {len(examples) - 1}" in printed
    assert "1 examples could not be read" in error
    steer(*common, "--threshold", "-0.5", "--by", "score")
    assert json.loads(out.read_text(encoding="utf-8").splitlines()[0])["line"] == 1
    _, error = steer(*common[:-1], str(out), "--vector", "nobody", code=1)
    assert "nobody" in error


def test_a_line_that_cannot_be_read_leaves_the_others(steer: Steer, tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "screened.jsonl"
    called = {"messages": [*messages("a day"), CALL, RETURNED, *messages("", "a good day")[1:]]}
    lines = [
        "no JSON",
        json.dumps({"text": ""}),
        json.dumps(called),
        json.dumps({"messages": messages("a", "")}),
    ]
    data.write_text("\n".join([*lines, '"a bad day"']), encoding="utf-8")
    _, error = steer("screen", str(data), "--vector", "mood", "--out", str(out))
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["line"] for row in rows] == [3, 5, 1, 2, 4]
    assert rows[0]["z"]["mood"] > 5 > -5 > rows[1]["z"]["mood"]
    for row, says in zip(rows[2:], ("not valid JSON", "text is empty", "an empty answer"), strict=True):
        assert says in row["error"]
    assert "3 examples could not be read" in error


def test_a_text_of_a_single_token_has_no_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "screened.jsonl"
    data.write_text('"a"\n"a good day"\n', encoding="utf-8")
    with running(ScriptedEngine()) as address, Client(address) as client:
        client.register_vector("mood", {"2": planted_direction().tolist()}, scale={"2": 2.0})
        Steer(address, capsys)("screen", str(data), "--vector", "mood", "--out", str(out))
    read, other = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert (read["line"], other["line"]) == (2, 1)
    assert "a single token" in other["error"]


def test_a_z_that_is_not_known_is_null_and_counts_nowhere(steer: Steer, tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "screened.jsonl"
    data.write_text('"a good day"\n"a bad day"\n', encoding="utf-8")
    printed, _ = steer("screen", str(data), "--vector", "flat", "--vector", "mood", "--out", str(out))
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row["line"], row["z"]["flat"]) for row in rows] == [(1, None), (2, None)]
    assert rows[0]["z"]["mood"] > 5 > -5 > rows[1]["z"]["mood"]
    assert "0 of 2" in printed


def test_a_file_that_is_standard_output_has_no_table_in_it(
    address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text('"a good day"\n"a bad day"\n', encoding="utf-8")
    evaluated = ("evaluate", "mood", "--concept", "sentiment", "--strengths", "1", "--random-directions", "0")
    for command, heading in (
        (("screen", str(texts), "--vector", "mood", "--out", "/dev/stdout"), "mean z"),
        ((*evaluated, "--items", "/dev/stdout"), "strength"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--url", address])
        out, error = capfd.readouterr()
        assert not ended.value.code, error
        assert all(isinstance(json.loads(line), dict) for line in out.splitlines())
        assert len(out.splitlines()) > 1
        assert heading in error
    with pytest.raises(SystemExit) as ended:
        main([*evaluated, "--items", "/dev/stdout", "--json", "--url", address])
    assert (ended.value.code, capfd.readouterr().out) == (2, "")


def test_a_vector_of_phases_is_tested_in_its_phases(steer: Steer, tmp_path: Path, address: str) -> None:
    """What is thought differs, and the answers are alike; another position is read where it is named."""
    texts = [(f"<think>{word} {number}</think>\nYes {number}", word) for number in range(6) for word in ("good", "bad")]
    file = tmp_path / "labelled.csv"
    with file.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([["text", "label", "prompt"], *[[text, label, "How?"] for text, label in texts]])
    talks = [messages("How?", text) for text, _ in texts]
    with Client(address) as client:
        pairs = [{"positive": one, "negative": other} for one, other in zip(talks[::2], talks[1::2], strict=True)]
        client.extract_vector("thought", pairs=pairs, phase=["thinking"], layers=[2], holdout=0)
        read = client.readout(talks, vectors=["thought"], layers=[2], phase=["thinking"]).texts
    scores = [one.readout["thought"]["2"].mean for one in read]
    found = json.loads(steer("test", "thought", str(file), "--positive", "good", "--threshold", "0.2", "--json")[0])
    assert (found["position"], found["phase"]) == ("mean", ["thinking"])
    right = [(score >= 0.2) == (label == "good") for score, (_, label) in zip(scores, texts, strict=True)]
    assert found["accuracy"] == sum(right) / len(right)
    assert found["auroc"] == 1.0
    named = json.loads(steer("test", "thought", str(file), "--positive", "good", "--position", "last", "--json")[0])
    assert (named["position"], named["phase"]) == ("last", None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("text", "text"),
        ({"text": "text"}, "text"),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, messages("a", "b")),
        ({"question": "a", "answer": "b", "id": 1}, messages("a", "b")),
        ({"instruction": "a", "input": "", "output": "b"}, messages("a", "b")),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": one} for one in "hi"]}]}, messages("hi")),
        ({"messages": [{"role": "developer", "content": "a"}]}, [{"role": "system", "content": "a"}]),
        ({"messages": [*messages("a"), CALL, RETURNED, *messages("", "b")[1:]]}, messages("a", "b")),
        ({"messages": [*messages("a"), CALL | {"content": "b"}, RETURNED]}, messages("a", "b")),
    ],
)
def test_the_usual_forms_of_training_examples(line: Any, expected: Any) -> None:
    assert example_of(line) == expected


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"messages": []}, "expected a text, or an object with"),
        ({"prompt": "a"}, "expected a text, or an object with"),
        (3, "expected a text, or an object with"),
        ({"messages": [*messages("a"), {"role": "assistant", "content": None}]}, "messages.1.content: expected a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content: expected a text"),
        ({"messages": ["a"]}, "messages.0.role: expected a text"),
        ({"messages": [CALL]}, "messages has no text"),
        ({"conversations": [{"from": "gpt", "value": 1}]}, "conversations.0.value: expected a text"),
        ({"text": ""}, "text is empty"),
        ({"prompt": "q", "completion": ""}, "completion is empty"),
    ],
)
def test_what_cannot_be_read_of_an_example_is_named(line: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{re.escape(says)}"):
        example_of(line)
