"""The field benchmark runs over HTTP on a planted folder of data, keeps texts of the data out of what it writes, and goes on where it stopped."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.contenders.process import Contender
from benchmarks.field import __main__ as field
from benchmarks.field import behaviours, data, page, refusal
from benchmarks.field.methods import DIRECTIONS, MAPS
from benchmarks.field.run import Counts, Run
from steering.client import Client
from steering.engine.transformers.engine import TransformersEngine
from steering.lab.calibration import NEAR
from steering.model.loading import opened
from steering.schemas.evaluation import CalibratedAnswer, CalibrationAnswer
from tests.app.running import running
from tests.families import D_MODEL

BEHAVIOUR = "refusal"
FEW = Counts(4, 2, 3, 2, 3, 20, 3, 2, 2, 2, 2, (0.5, 1.0), (2, 4), (3, 4))
CHECKER = """
from types import SimpleNamespace

def test_instruction_following(row, answer):
    return SimpleNamespace(follow_instruction_list=[row["kwargs"][0]["followed"], True])
"""
"""Finds of each prompt what its row says."""


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
            ours = client.get_directions(behaviours.vector_name(BEHAVIOUR) if open_answer else refusal.VECTOR)
        found = {method: ours if method == "steering-lite" else rows for method in arguments["methods"]}
        return {**found, "peak_bytes": None}

    def close(self) -> None:
        """See Process.close."""


def written(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def ifeval(tmp_path: Path) -> Iterator[Path]:
    """Prompts of IFEval, of which three of four need no punkt, and code that verifies them. What was imported of it is forgotten."""
    root = tmp_path / data.IFEVAL
    rows = [
        {
            "prompt": f"ask {n}",
            "instruction_id_list": ["startend:quotation", "length_constraints:number_sentences" if n == 3 else "x"],
            "kwargs": [{"followed": n > 0}, {}],
        }
        for n in range(4)
    ]
    written(root / data.IFEVAL / "data" / "input_data.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    written(root / data.IFEVAL / "__init__.py", "")
    written(root / data.IFEVAL / "evaluation.py", CHECKER)
    written(root / "langdetect.py", "class DetectorFactory:\n    seed = None\n")
    yield root / data.IFEVAL
    for name in [one for one in sys.modules if one.split(".")[0] in {str(data.IFEVAL), "langdetect"}]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, ifeval: Path) -> Path:
    """Data of the four repositories with a handful of rows each."""
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
        found = {name: entry["result"] for name, entry in json.loads(first).items()}
        behaviour = found[f"caa.{BEHAVIOUR}"]
        with Client(url) as client:  # as a run that finds the vector calibrated
            again = Run(client, 3, D_MODEL, folder, FEW, 0).kl(behaviours.vector_name(BEHAVIOUR), behaviour["layer"])
    assert output.read_text() == first, "what is there is not measured again"
    for prompts, sides in behaviour["kl"].items():
        assert again[prompts] == pytest.approx(sides, rel=1e-3)
    assert behaviour["counts"] == {"pairs": 4, "validation": 2, "test": 3}
    assert len(behaviour["random"]) == FEW.random
    assert set(behaviour["validation"]) <= {"1", "2"}
    for reached in (behaviour["kl"], found["refusal"]["kl"], *behaviour["random_kl"]):
        assert all(exp(-NEAR) <= one <= exp(NEAR) for one in reached["calibration"])
        assert all(one > 0.0 for one in reached["others"])
    assert len(behaviour["random_kl"]) == len(found["refusal"]["random_kl"]) == FEW.random
    assert behaviour["truthful_qa"]["unsteered"]["mean"] == behaviour["mmlu"]["unsteered"]["mean"], "the same questions"
    assert 0.0 <= found["refusal"]["harmless +"]["share"] <= 1.0
    assert 0.0 <= found["concepts.0"]["auroc"] <= 1.0
    layer = behaviour["layer"]
    beside, followed = found[f"following.layer-{layer}"], found[f"following.{BEHAVIOUR}"]
    assert beside["unsteered"]["share"] == pytest.approx(2 / 3), (
        "of the three prompts without punkt the first is not followed"
    )
    assert len(beside["random"]) == FEW.random
    assert followed["strengths"] == behaviour["strengths"]
    assert followed["counts"] == {"test": 3, "tokens": 4}
    assert followed["+"]["change"]["mean"] == 0.0
    peers = found[f"peers.{BEHAVIOUR}"]
    ahead = behaviour["spread"] - peers["repeng"]["spread"]
    assert peers["repeng"]["ours_minus_it"]["mean"] == pytest.approx(ahead, abs=1e-6)
    assert -1.0 <= peers["steering-vectors"]["cosine"] <= 1.0
    assert "harmful -" in found["peers.refusing"]["prompt"]
    methods, rows = found[f"methods.{BEHAVIOUR}"], field.Results(output)
    assert methods["mean_difference"]["beyond_base"]["mean"] == 0.0
    for method in (*DIRECTIONS, "clas"):
        shifts = [row["shift"] for row in rows.items(f"methods.{BEHAVIOUR}", method)]
        assert fmean(shifts) == pytest.approx(methods[method]["shift"], abs=1e-6)
        assert exp(-NEAR) <= methods[method]["kl"] <= exp(NEAR)
    assert all(methods[method].get("failed") or "shift" in methods[method] for method in MAPS)
    items = [path.read_text() for path in (output.parent / "items").iterdir()]
    assert len(items) == 8
    check_items(output, found)
    assert all(items)
    for text in (first, *items):
        assert "nice?" not in text
        assert "do harmful" not in text
        assert "positive text" not in text
        assert "ask 1" not in text


def check_items(output: Path, found: dict[str, Any]) -> None:
    """Asserts that the items give the numbers of the results: each arm, and each random direction."""
    results = field.Results(output)
    rows, behaviour = results.items(f"caa.{BEHAVIOUR}", ""), found[f"caa.{BEHAVIOUR}"]
    assert all(row["spread"] == row["+"] - row["-"] for row in rows)
    assert all(isinstance(row["unsteered"], float) for row in rows)
    for number, mean in enumerate(behaviour["random"]):
        others = [row["random"][number] for row in rows]
        assert fmean(one["+"] - one["-"] for one in others) == pytest.approx(mean, abs=1e-6)
    for arm in refusal.PROMPTS:
        refused = [row["random"] for row in results.items("refusal", arm)]
        for number, shares in enumerate(found["refusal"]["random"]):
            assert fmean(one[number]["refused"] for one in refused) == pytest.approx(shares[arm])
    assert all(isinstance(row["random"], float) for row in results.items("concepts.0", ""))


def test_each_model_and_a_subset_have_a_file_of_their_own() -> None:
    assert field.output_of(field.MODEL, small=False) == field.RESULTS
    assert field.output_of(field.MODEL, small=True).name == f"field.{field.MODEL}.json"
    assert field.output_of("other-1.5b", small=False).name == "field.other-1.5b.json"


def test_a_behaviour_is_followed_with_the_vector_of_its_own_result(
    folder: Path,
    tmp_path: Path,
    tiny_model: PreTrainedModel,
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    output = tmp_path / "out" / "field.tiny.json"
    options = f"--data {folder} --behaviours {BEHAVIOUR} --output {output} --parts"
    vector = behaviours.vector_name(BEHAVIOUR)
    with running(TransformersEngine(opened(tiny_model, hf_byte_tokenizer, name="tiny"))) as url, Client(url) as client:

        def measured(part: str) -> dict[str, Any]:
            field.measure(field.parsed([*options.split(), part, "--url", url]), FEW, nullcontext())
            found: dict[str, Any] = json.loads(output.read_text())
            return found

        with pytest.raises(ValueError, match="run --parts caa --behaviours refusal"):
            measured("following")
        measured("caa")
        made, directions = client.get_vector(vector), client.get_directions(vector)
        first = measured("following")
        assert client.get_vector(vector).id == made.id, "the server's vector is used"
        client.delete_vector(vector)
        output.write_text(json.dumps({name: one for name, one in first.items() if name != f"following.{BEHAVIOUR}"}))
        again = measured("following")
        for layer, direction in client.get_directions(vector).items():
            assert direction == pytest.approx(directions[layer], abs=1e-5), "it is made again"
    (items,) = (output.parent / "items").iterdir()
    assert items.name == "tiny", "of another model they are apart"
    assert items / f"field.caa.{BEHAVIOUR}.jsonl" in items.iterdir()
    one, other = (found[f"following.{BEHAVIOUR}"]["result"] for found in (first, again))
    assert other["strengths"] == pytest.approx(one["strengths"], rel=0.1)
    assert other["digest"] == one["digest"]


def test_a_module_that_ifevals_code_lacks_is_named(ifeval: Path, tmp_path: Path) -> None:
    written(ifeval / "evaluation.py", "import no_such_module")
    with pytest.raises(ModuleNotFoundError, match="needs no_such_module: pip install immutabledict langdetect nltk"):
        data.checker(tmp_path)
    with pytest.raises(FileNotFoundError, match="git clone"):
        data.checker(tmp_path / "empty")


def test_retention_is_a_row_for_each_measured_behaviour() -> None:
    change = {"share": 0.4, "interval": [0.3, 0.5], "change": {"mean": -0.1, "interval": [-0.2, 0.0]}}
    found = {
        "following.layer-14": {"result": {"unsteered": change, "random": {"a": {"+": change, "-": change}}}},
        "following.refusal": {"result": {"layer": 14, "counts": {"test": 100}, "+": change, "-": change}},
    }
    assert page.following_table({}) == page.NONE
    cell = "0.40 [0.30, 0.50]; -0.10 [-0.20, +0.00]"
    row = f"| refusal | 14 (100 prompts) | 0.40 [0.30, 0.50] | {cell} | {cell} | -0.10; -0.10 |"
    assert page.following_table(found).splitlines()[2:] == [row]


def test_a_method_is_compared_with_the_mean_difference_of_each_behaviour(tmp_path: Path) -> None:
    def moved(shift: float, low: float, high: float) -> dict[str, Any]:
        beyond = {"mean": shift - 1.0, "interval": [low - 1.0, high - 1.0]}
        return {"shift": shift, "interval": [low, high], "layer": 14, "beyond_base": beyond}

    base, rest = moved(1.0, 0.5, 1.5), {name: {"failed": "no map (job job-1)"} for name in (*DIRECTIONS, *MAPS)}
    found = {
        "methods.refusal": {
            "result": rest | {"mean_difference": base, "pca": moved(2.0, 1.5, 2.5), "clas": moved(0.5, 0.2, 0.8)}
        },
        "methods.sycophancy": {"result": rest | {"mean_difference": base, "pca": moved(1.2, 0.8, 1.6)}},
    }
    path = tmp_path / "field.json"
    assert page.methods_table(path) == page.NONE
    path.write_text(json.dumps(found))
    shown = page.methods_table(path)
    assert "| method | refusal | sycophancy | less the mean difference |" in shown
    assert "| `rfm` | none | none |  |" in shown
    assert "`rfm` gives nothing for refusal: no map.\n" in shown
    assert shown.count("; none |") == 1, "clas, of sycophancy"
    assert "| +1.00 [+0.50, +1.50]; +0.20 [-0.20, +0.60] |" in shown
    assert "`pca` moves more in 1 of 2 and less in 0; " in shown
    assert "`clas` moves more in 0 of 1 and less in 1." in shown


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
            client.delete_vector(behaviours.vector_name(BEHAVIOUR))
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


def test_what_has_no_calibrated_layer_is_left_out_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class OneWay(Client):
        """A vector has a strength of 1 nat above 0 alone."""

        def calibrate(self, *_: Any, layers: Any = None, **__: Any) -> CalibrationAnswer:
            points = [
                CalibratedAnswer(layer=one, positive=1.0, negative=None, kl_positive=1.0, kl_negative=None)
                for one in layers
            ]
            return CalibrationAnswer(vector="one", limit=1.0, tokens=9, points=points, warnings=())

    results = field.Results(tmp_path / "field.json")
    with OneWay("http://127.0.0.1:1") as client:
        run = Run(client, 3, D_MODEL, tmp_path, FEW, 0)
        results.add("caa.one", {}, lambda: run.chosen("one", float).facts())
    results.add("caa.other", {}, lambda: {"spread": 1.0})
    assert list(json.loads((tmp_path / "field.json").read_text())) == ["caa.other"]
    assert "caa.one is left out: none of the layers [1, 2] has strengths of 1 nat" in capsys.readouterr().out
