"""`steer test` and the sources of `steer extract`: planted separations are measured, and what cannot be read is named."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from app.cli.evaluation import LabelledText, measured
from steering.client import Client
from steering.client.display import card_html
from tests.app.cli.conftest import Steer
from tests.app.running import running
from tests.scripted_model import planted_direction


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as found:
        with Client(found) as client:
            client.register_vector("mood", {"2": planted_direction().tolist()}, scale={"2": 2.0})
        yield found


def table(file: Path, header: list[str], rows: list[list[str]]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([header, *rows])
    return file


def test_a_planted_vector_separates_its_texts(steer: Steer, tmp_path: Path) -> None:
    rows = [[f"a {word} day, {i}", label] for word, label in (("good", "1"), ("bad", "0")) for i in range(8)]
    file = table(tmp_path / "labelled.csv", ["text", "label"], rows)
    found = json.loads(steer("test", "mood", str(file), "--json")[0])
    assert (found["vector"], found["layer"], found["position"]) == ("mood@1", 2, "last")
    assert (found["auroc"], found["accuracy"], found["positives"], found["negatives"]) == (1.0, 1.0, 8, 8)
    assert found["auroc_interval"][0] < 1.0
    out, error = steer("test", "mood", str(file), "--threshold", "0.9")
    assert "AUROC 1.000" in out
    assert "0% of the positive and 100% of the negative" in out
    assert "class means" in error
    named = table(tmp_path / "named.csv", ["label", "text"], [["glad" if b == "1" else "sad", a] for a, b in rows])
    assert json.loads(steer("test", "mood", str(named), "--positive", "sad", "--json")[0])["auroc"] == 0.0
    _, error = steer("test", "mood", str(named), code=1)
    assert "--positive" in error


def test_the_largest_score_of_a_text_is_that_of_its_readout(steer: Steer, tmp_path: Path, address: str) -> None:
    texts = [f"a {word} day, {i}" for word in ("good", "bad") for i in range(12)]
    labels = ["1"] * 12 + ["0"] * 12
    file = table(tmp_path / "labelled.csv", ["text", "label"], [list(row) for row in zip(texts, labels, strict=True)])
    out, error = steer("test", "mood", str(file), "--position", "max", "--threshold", "-0.4", "--json")
    found = json.loads(out)
    assert "first token" not in error
    with Client(address) as client:
        read = client.readout(texts, vectors=["mood"], layers=[2]).texts
    scores = [one.readout["mood"]["2"].max for one in read]
    assert (found["position"], found["auroc"]) == ("max", roc_auc_score(labels, scores))
    right = [(score >= -0.4) == (label == "1") for score, label in zip(scores, labels, strict=True)]
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))
    short = table(tmp_path / "short.csv", ["text", "label"], [["g", "1"], ["a good day", "1"], ["b", "0"]])
    assert "of 2 of 3 texts only the first token is read" in " ".join(
        steer("test", "mood", str(short), "--position", "max")[1].split()
    )


@pytest.mark.parametrize(
    ("given", "position"),
    [
        ("response_mean", "response_mean"),
        ("span:d", {"span": "d"}),
        ("attending:d", {"span": "d", "read": "attending"}),
    ],
)
def test_an_extracted_vector_is_read_at_its_own_position(
    steer: Steer, tmp_path: Path, given: str, position: Any
) -> None:
    pairs = [[f"good number {i}", f"bad number {i}", f"t{i}"] for i in range(8)]
    file = table(tmp_path / "pairs.csv", ["positive", "negative", "topic"], pairs)
    made = json.loads(steer("extract", "made", "--pairs", str(file), "--position", given, "--json")[0])
    assert (made["quality"]["pairs"], made["provenance"]["topics"]) == (8, 8)
    rows = [["a good day", "yes", "How was it?"], ["a bad day", "no", ""], ["good", "yes", ""], ["bad", "no", "And?"]]
    labelled = table(tmp_path / "labelled.csv", ["text", "label", "prompt"], rows)
    found = json.loads(steer("test", "made", str(labelled), "--json")[0])
    assert (found["position"], found["auroc"]) == (position, 1.0)


def test_a_distilled_vector_reads_texts_as_answers(steer: Steer, tmp_path: Path, address: str) -> None:
    rows = [["a good day", "yes", "How was it?"], ["a bad day", "no", ""], ["good", "yes", ""], ["bad", "no", "And?"]]
    labelled = table(tmp_path / "labelled.csv", ["text", "label", "prompt"], rows)
    with Client(address) as client:
        prompts = [f"say {number}" for number in range(10)]
        client.distil_vector("pirate", "Answer as a pirate.", prompts=prompts, layers=[2], max_tokens=8)
    found, named = (
        json.loads(steer("test", "pirate", str(labelled), *at, "--json")[0])
        for at in ((), ("--position", "response_mean"))
    )
    assert found == named
    assert found["position"] == "response_mean"


def test_a_card_may_have_the_largest_score(steer: Steer, tmp_path: Path, address: str) -> None:
    pairs = [[f"good number {i}", f"bad number {i}", f"t{i}"] for i in range(8)]
    file = table(tmp_path / "pairs.csv", ["positive", "negative", "topic"], pairs)
    out, _ = steer("extract", "largest", "--pairs", str(file), "--card-position", "max")
    assert "by the largest score over the tokens of a text: AUROC 1.00" in out
    with Client(address) as client:
        assert "AUROC 1.00 (95 % interval" in card_html(client.get_vector("largest"))


def test_two_lists_of_texts_make_a_vector(steer: Steer, tmp_path: Path) -> None:
    positive, negative = tmp_path / "positive.txt", tmp_path / "negative.jsonl"
    positive.write_text("".join(f"good {i}\n" for i in range(6)), encoding="utf-8")
    negative.write_text("".join(json.dumps({"text": f"bad {i}"}) + "\n" for i in range(5)), encoding="utf-8")
    made = json.loads(steer("extract", "lists", "--positive", str(positive), "--negative", str(negative), "--json")[0])
    assert (made["provenance"]["paired"], made["provenance"]["positives"], made["provenance"]["negatives"]) == (
        False,
        6,
        5,
    )
    steer("extract", "lists", "--positive", str(positive), code=2)
    steer(
        "extract", "lists", "--positive", str(positive), "--negative", str(negative), "--concept", "sentiment", code=2
    )


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["text"], [["a"]], "columns"),
        (["text", "label", "extra"], [["a", "1", ""]], "columns"),
        (["text", "label"], [["a", "1"], ["b", "1"]], "both labels"),
        (["text", "label"], [["", "1"], ["b", "0"]], "line 2"),
        (["text", "label"], [["a", "1"], ["b", "perhaps"]], "line 3"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    steer: Steer, tmp_path: Path, header: list[str], rows: list[list[str]], message: str
) -> None:
    _, error = steer("test", "mood", str(table(tmp_path / "odd.csv", header, rows)), code=1)
    assert message in error


def test_a_csv_of_pairs_has_the_rules_of_json_lines(steer: Steer, tmp_path: Path) -> None:
    file = table(tmp_path / "pairs.csv", ["positive", "negative", "mood"], [["a", "b", "c"]])
    _, error = steer("extract", "x", "--pairs", str(file), code=1)
    assert "mood" in error


def test_copies_of_a_group_are_no_more_evidence_of_accuracy() -> None:
    groups = [(f"g{number}", label, number < 6) for number in range(8) for label in (True, False)]
    rows = [LabelledText("a", label, None, name) for name, label, _ in groups]
    scores = [1.0 if label == right else -1.0 for _, label, right in groups]
    one, many = measured(rows, scores, 0.0), measured(rows * 9, scores * 9, 0.0)
    assert one["accuracy"] == many["accuracy"] == 0.75
    assert one["accuracy_interval"] == pytest.approx(many["accuracy_interval"])
    assert measured(rows[:4], scores[:4], 0.0)["accuracy_interval"] is None, "two groups"


@pytest.mark.parametrize(("accuracy", "count"), [(0.9, 20), (0.97, 60)])
def test_the_interval_of_the_accuracy_holds_the_true_one(accuracy: float, count: int) -> None:
    """Also where all texts are read rightly, as in one of seven draws here."""
    rows = [LabelledText("a", number % 2 == 0, None, f"{number}") for number in range(count)]
    held = []
    for drawn in np.random.default_rng(1).random((300, count)) < accuracy:
        scores = [1.0 if row.positive == right else -1.0 for row, right in zip(rows, drawn, strict=True)]
        low, high = measured(rows, scores, 0.0)["accuracy_interval"]
        held.append(low <= accuracy <= high)
    assert np.mean(held) > 0.92


def test_numbers_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    labels = rng.random(60) < 0.4
    scores = rng.normal(size=60) + labels
    rows = [LabelledText("a", bool(label), None, f"g{i // 3}") for i, label in enumerate(labels)]
    found = measured(rows, scores.tolist(), 0.5)
    assert found["auroc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["auroc_interval"][0] < found["auroc"] < found["auroc_interval"][1]
    assert found["accuracy"] == pytest.approx(float(((scores >= 0.5) == labels).mean()))
    assert found["accuracy_interval"][0] < found["accuracy"] < found["accuracy_interval"][1]
