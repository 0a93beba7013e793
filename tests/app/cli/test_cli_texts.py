"""Commands that read texts, as a person runs them: activations, score, explain, clusters."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from steering.client import Client
from tests.app.cli.conftest import Steer
from tests.app.conftest import D_MODEL
from tests.app.running import running
from tests.scripted_model import planted_direction


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as found:
        with Client(found) as client:
            client.register_vector("mood", {"2": planted_direction().tolist()}, scale={"2": 2.0})
        yield found


def test_activations_are_written_to_a_file(steer: Steer, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    chat = {"messages": [{"role": "user", "content": "Hello"}]}
    texts.write_text("\n".join(map(json.dumps, ["a good day", {"text": "a bad day"}, chat])), encoding="utf-8")
    output = tmp_path / "read.safetensors"
    out, error = steer("activations", "one more", "--file", str(texts), "--layers", "1,2", "-o", str(output))
    assert not out  # which the file may be, as /dev/stdout
    assert "wrote" in error
    found = load_file(output)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {
        "layer.1": (4, D_MODEL),
        "layer.2": (4, D_MODEL),
    }
    steer("activations", "a good day", "--position", "all", "-o", str(output))
    assert len(load_file(output)["token_ids"]) == len("a good day")
    steer("activations", code=2)
    (tmp_path / "bad.jsonl").write_text("5\n", encoding="utf-8")
    _, error = steer("activations", "--file", str(tmp_path / "bad.jsonl"), code=1)
    assert "line 1" in error


def test_score_lists_each_continuation(steer: Steer) -> None:
    out, _ = steer("score", "The day was", "--raw", "--continuation", " good", "--continuation", " bad")
    assert " good" in out
    assert " bad" in out
    answer = json.loads(steer("score", "a whole text", "--json")[0])
    assert (len(answer["scores"]), answer["prompt_tokens"]) == (1, 0)


def test_explain_names_the_concept_and_its_tokens(steer: Steer) -> None:
    out, _ = steer("explain", "a good day", "a day", "--threshold", "10")
    assert "mood@1" in out
    assert "nothing stands out" in steer("explain", "a day", "--threshold", "900")[0]


def test_explain_shows_a_dash_where_z_is_not_known(steer: Steer, address: str) -> None:
    """All neutral texts have the same score, up to rounding."""
    with Client(address) as client:
        client.register_vector("flat", {"2": planted_direction().tolist()}, scale={"2": 1e9})
        try:
            out, _ = steer("explain", "a day", "--threshold", "0", "--vector", "flat")
        finally:
            client.delete_vector("flat")
    assert "flat@1" in out
    assert " - " in out
    assert "nan" not in out


def test_clusters_show_examples_and_the_vector_between(steer: Steer, tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("".join(f"{word} day {i}\n" for word in ("good", "bad") for i in range(6)), encoding="utf-8")
    out, _ = steer("clusters", "--file", str(lines), "--layer", "2", "--clusters", "2")
    assert "good day" in out
    assert "mood@1" in out


def test_a_batch_goes_from_file_to_file(steer: Steer, tmp_path: Path) -> None:
    requests, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"id": f"r{i}", "prompt": "a" * (5000 if i == 3 else 5), "max_tokens": 2, "seed": i} for i in range(6)]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    out, error = steer("batch", str(requests), "--out", str(answers))
    assert not out
    assert "5 answers" in error
    assert "1 requests failed" in error
    found = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [one["id"] for one in found] == [line["id"] for line in lines]
    assert ["error" in one for one in found] == [i == 3 for i in range(6)]
    requests.write_text('{"prompt": "a"}\n{"prompt": 5}\n', encoding="utf-8")
    _, error = steer("batch", str(requests), "--out", str(answers), code=1)
    assert "line 2" in error


def test_a_batch_of_scores_goes_from_file_to_file(steer: Steer, tmp_path: Path) -> None:
    requests, answers = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"texts": ["abc"]},
        {"prompt": "a", "continuations": ["b"]},
        {"items": [{"prompt": "a", "choices": ["c", "d"]}]},
    ]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    steer("batch", str(requests), "--score", "--out", str(answers))
    found = [json.loads(line)["response"] for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [[one["text"] for one in answer["scores"]] for answer in (*found[:2], *found[2]["items"])] == [
        ["abc"],
        ["b"],
        ["c", "d"],
    ]


def test_an_answer_that_is_begun_is_continued(steer: Steer) -> None:
    begun = ["Is it warm?", "--prefill", "Yes, "]
    usage = [
        json.loads(steer("generate", *arguments, "--max-tokens", "2", "--json")[0])["usage"]["prompt_tokens"]
        for arguments in (begun[:1], begun)
    ]
    assert usage[1] - usage[0] == len("<assistant>Yes, ")
    scored = json.loads(steer("score", *begun, "--continuation", "it is", "--json")[0])
    assert scored["prompt_tokens"] == usage[1]
    steer("score", *begun, code=2)
    steer("generate", *begun, "--raw", code=2)


def test_the_largest_token_decides_what_stands_out(steer: Steer) -> None:
    mean, largest = (
        json.loads(steer("explain", "a good day", "--threshold", "0", "--position", position, "--json")[0])
        for position in ("mean", "max")
    )
    assert mean["texts"][0]["concepts"][0]["score"] < largest["texts"][0]["concepts"][0]["score"]


def test_steering_is_read_from_a_file_and_a_replay_brings_its_direction(steer: Steer, tmp_path: Path) -> None:
    direction = {"directions": {"1": [1.0] * D_MODEL}}
    steering, directions, answer = (tmp_path / name for name in ("steering.json", "directions.json", "answer.json"))
    steering.write_text(json.dumps([{"vector": direction, "strength": 0.01}]), encoding="utf-8")
    directions.write_text(json.dumps(direction), encoding="utf-8")
    out, _ = steer("generate", "Hi", "--steering", f"@{steering}", "--max-tokens", "3", "--json")
    answer.write_text(out, encoding="utf-8")
    assert json.loads(out)["steering"]["applied"][0]["vector"].startswith("inline:")
    steer("replay", str(answer), "--directions", str(directions))
    _, error = steer("replay", str(answer), code=1)
    assert "directions" in error
