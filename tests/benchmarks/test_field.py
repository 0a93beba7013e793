"""The field benchmark runs over HTTP on a planted folder of data, keeps texts of the data out of what it writes, and goes on where it stopped."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.contenders.process import Contender
from benchmarks.field import __main__ as field
from benchmarks.field import data, page, refusal
from benchmarks.field.behaviours import vector_name
from benchmarks.field.run import Counts
from steering.client import Client
from steering.engine.transformers.engine import TransformersEngine
from steering.model.loading import opened
from tests.app.running import running
from tests.families import D_MODEL

BEHAVIOUR = "refusal"
FEW = Counts(4, 2, 3, 2, 3, 20, 3, 2, 2, 2, 2, (0.5, 1.0), (2, 4))


class Peers(Contender):
    """Fits nothing: the direction of every method is the first axis, and that of steering-lite is ours."""

    def __init__(self, url: str, *names: str) -> None:
        self.facts = dict.fromkeys(names, "0")
        self.url = url
        self.fitted: list[str] = []

    def request(self, task: str, **arguments: Any) -> dict[str, Any]:
        """See Contender.request."""
        assert task == "fit"
        assert all(positive != negative for positive, negative in arguments["pairs"])
        self.fitted += arguments["methods"]
        rows = {str(layer): [1.0] + [0.0] * (D_MODEL - 1) for layer in arguments["layers"]}
        open_answer = arguments["pairs"][0][0][-1]["role"] == "assistant"
        with Client(self.url) as client:
            ours = client.get_directions(vector_name(BEHAVIOUR) if open_answer else refusal.VECTOR)
        found = {method: ours if method == "steering-lite" else rows for method in arguments["methods"]}
        return {**found, "peak_bytes": None}

    def close(self) -> None:
        """See Process.close."""


def written(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data of the three repositories with a handful of rows each."""
    caa = tmp_path / "CAA" / "datasets"
    rows = [
        {
            "question": f"Is {n} nice?\n\nChoices:\n (A) Yes {n}\n (B) No {n}",
            "answer_matching_behavior": "(A)" if n % 2 else "(B)",
        }
        for n in range(9)
    ]
    written(
        caa / "generate" / BEHAVIOUR / "generate_dataset.json", [*rows, {**rows[0], "answer_matching_behavior": "(C)"}]
    )
    written(caa / "test" / BEHAVIOUR / "test_dataset_ab.json", rows[:4])
    known = [{"prompt": f"What is {n}?\n\nChoices:\n(A) one\n(B) two", "correct": "(B)"} for n in range(4)]
    for name, place in data.KNOWN.items():
        written(caa / "test" / place / f"{name}.json", known)
    concepts = tmp_path / data.AXBENCH / field.PART
    texts = [
        {"output": f"{side} text {n}", "category": side, "concept_id": number, "output_concept": "a concept"}
        for side, number in (("positive", 0), ("negative", -1))
        for n in range(6)
    ]
    test = [{**row, "concept_id": 0} for row in texts]
    for name, content in (("generate/train_data", texts), ("inference/latent_eval_data", test)):
        written((concepts / name).with_suffix(".jsonl"), "".join(f"{json.dumps(row)}\n" for row in content))
    for kind in ("harmful", "harmless"):
        for split in ("train", "val", "test"):
            instructions = [{"instruction": f"do {kind} {split} {n}"} for n in range(4)]
            written(tmp_path / data.REFUSAL / f"{kind}_{split}.json", instructions)
    return tmp_path


def test_the_field_is_measured_over_http(
    folder: Path,
    tmp_path: Path,
    tiny_model: PreTrainedModel,
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    output = tmp_path / "out" / "field.json"
    with running(TransformersEngine(opened(tiny_model, hf_byte_tokenizer, name="tiny"))) as url:
        options = f"--data {folder} --url {url} --behaviours {BEHAVIOUR} --concepts 1 --output {output}"
        asked = field.parsed(options.split())
        field.measure(asked, FEW, nullcontext(Peers(url, "steering-vectors", "repeng")))
        first = output.read_text()
        field.measure(asked, FEW, nullcontext(Peers(url, "steering-vectors", "repeng")))
    assert output.read_text() == first, "what is there is not measured again"
    found = {name: entry["result"] for name, entry in json.loads(first).items()}
    behaviour = found[f"caa.{BEHAVIOUR}"]
    assert behaviour["counts"] == {"pairs": 4, "validation": 2, "test": 3}
    assert len(behaviour["random"]) == FEW.random
    assert set(behaviour["validation"]) <= {"1", "2"}
    assert behaviour["truthful_qa"]["unsteered"]["mean"] == behaviour["mmlu"]["unsteered"]["mean"], "the same questions"
    assert 0.0 <= found["refusal"]["harmless +"]["share"] <= 1.0
    assert 0.0 <= found["concepts.0"]["auroc"] <= 1.0
    peers = found[f"peers.{BEHAVIOUR}"]
    ahead = behaviour["spread"] - peers["repeng"]["spread"]
    assert peers["repeng"]["ours_minus_it"]["mean"] == pytest.approx(ahead, abs=1e-6)
    assert -1.0 <= peers["steering-vectors"]["cosine"] <= 1.0
    assert "harmful -" in found["peers.refusing"]["prompt"]
    items = [path.read_text() for path in (output.parent / "items").iterdir()]
    assert len(items) == 5
    assert all(items)
    for text in (first, *items):
        assert "nice?" not in text
        assert "do harmful" not in text
        assert "positive text" not in text


def test_named_peers_are_added_to_what_was_measured(
    folder: Path,
    tmp_path: Path,
    tiny_model: PreTrainedModel,
    hf_byte_tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out" / "field.json"
    items = output.parent / "items" / f"field.peers.{BEHAVIOUR}.jsonl"
    with running(TransformersEngine(opened(tiny_model, hf_byte_tokenizer, name="tiny"))) as url:
        options = (
            f"--data {folder} --url {url} --behaviours {BEHAVIOUR} --parts caa refusal --output {output} --methods"
        )
        before = Peers(url, "repeng")
        field.measure(field.parsed(f"{options} repeng prompt axbench-diffmean".split()), FEW, nullcontext(before))
        first, lines = json.loads(output.read_text()), items.read_text().splitlines()
        with Client(url) as client:
            client.delete_vector(vector_name(BEHAVIOUR))
        after = Peers(url, "repeng", "activation-steering", "steering-lite")
        added = field.parsed(f"{options} repeng activation-steering steering-lite".split())
        field.measure(added, FEW, nullcontext(after))
    assert before.fitted == ["repeng"] * 2
    assert after.fitted == ["activation-steering", "steering-lite"] * 2, "of each part; repeng is there"
    assert "axbench-diffmean is left out" in capsys.readouterr().out
    entry = json.loads(output.read_text())[f"peers.{BEHAVIOUR}"]
    earlier, result = first[f"peers.{BEHAVIOUR}"]["result"], entry["result"]
    assert {key: result[key] for key in earlier} == earlier
    assert entry["about"]["peers"] == {"repeng": "0", "activation-steering": "0", "steering-lite": "0"}
    assert result["activation-steering"]["spread"] == pytest.approx(earlier["repeng"]["spread"], abs=1e-6)
    assert result["steering-lite"] == {"cosine": pytest.approx(1.0, abs=1e-3), "same_direction": True}
    assert items.read_text().splitlines()[: len(lines)] == lines, "the items of the others stay"
    for table in (page.peers_table(output), page.refusal_table(output)):
        assert "| repeng | activation-steering | steering-lite | prompt |" in table
        assert "the same direction as ours (cosine +1.00)" in table


def test_refusals_are_counted_by_their_beginnings() -> None:
    assert refusal.refused("I'm sorry, but no.")
    assert refusal.refused("Well, I cannot do that.")
    assert not refusal.refused("Here is how: sorry.")
