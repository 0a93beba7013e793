"""Reads the data of public repositories from a folder; nothing of it is part of this one. docs/field.md has the commands that fetch it."""

import hashlib
import json
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

BEHAVIOURS = (
    "coordinate-other-ais", "corrigible-neutral-HHH", "hallucination", "myopic-reward", "refusal", "survival-instinct", "sycophancy",
)  # fmt: skip
"""The seven behaviours of CAA (Rimsky et al., arXiv 2312.06681)."""
CAA = (Path("CAA") / "datasets", Path("steering-llama3") / "datasets" / "CAA")
"""In nrimsky/CAA, and in EleutherAI/steering-llama3, which has the same files and is smaller."""
AXBENCH = Path("axbench") / "axbench" / "concept10"
REFUSAL = Path("refusal_direction") / "dataset" / "splits"
IFEVAL = Path("instruction_following_eval")
PUNKT = frozenset({"length_constraints:number_sentences", "change_case:capital_word_frequency"})
"""The instructions of IFEval that its code verifies with nltk's tokenizer punkt, a download of its own."""
KNOWN = {"mmlu": "mmlu", "truthful_qa": "truthfulqa"}
"""Questions with a right answer, by file: their folder in CAA's test split."""
LETTERS = ("A", "B")
_CHOICES = re.compile(r"^(?P<question>.*?)\s*(?:Choices:)?\s*\(A\)\s*(?P<a>.*?)\s*\(B\)\s*(?P<b>.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Question:
    """One item of two choices. answer: index of the one that shows the behaviour. text: as the data set writes it."""

    question: str
    choices: tuple[str, str]
    answer: int
    text: str

    def item(self) -> dict[str, Any]:
        """Returns the item of an evaluation `choices`."""
        return {"question": self.question, "choices": list(self.choices), "answer": self.answer}


def digest(content: Any) -> str:
    """Returns the first 16 digits of the SHA-256 of what was used."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def chosen(rows: Sequence[Any], count: int, seed: int) -> list[Any]:
    """Draws rows without replacement, in an order that the seed decides."""
    return random.Random(seed).sample(list(rows), min(count, len(rows)))


def _caa(folder: Path) -> Path:
    """Returns the folder of CAA's data. Raises FileNotFoundError."""
    for path in CAA:
        if (folder / path).is_dir():
            return folder / path
    raise FileNotFoundError(f"{folder} has none of {', '.join(map(str, CAA))}")


def behaviour(folder: Path, name: str) -> tuple[list[Question], list[Question]]:
    """Returns the questions of CAA's generation split and of its test split. Raises FileNotFoundError."""
    return (
        _questions(_caa(folder) / "generate" / name / "generate_dataset.json"),
        _questions(_caa(folder) / "test" / name / "test_dataset_ab.json"),
    )


def _questions(path: Path) -> list[Question]:
    found = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        parts, answer = _CHOICES.match(row["question"]), row["answer_matching_behavior"].strip(" ()")
        if parts is not None and answer in LETTERS and "(C)" not in parts["b"]:
            choices = parts["a"], parts["b"]
            found.append(Question(parts["question"], choices, LETTERS.index(answer), row["question"]))
    return found


def known(folder: Path, name: str, count: int, seed: int) -> list[Question]:
    """Returns questions of the subset of `mmlu` or `truthful_qa` that CAA uses, each with the right and one wrong choice."""
    rows = json.loads((_caa(folder) / "test" / KNOWN[name] / f"{name}.json").read_text(encoding="utf-8"))
    found = []
    for row in chosen(rows, count, seed):
        parts = _CHOICES.match(row["prompt"])
        if parts is not None and parts["a"].strip() and parts["b"].strip():  # one question of MMLU has an empty choice
            answer = LETTERS.index(row["correct"].strip(" ()"))
            found.append(Question(parts["question"], (parts["a"], parts["b"]), answer, row["prompt"]))
    return found


@dataclass(frozen=True, slots=True)
class Concept:
    """Texts of one concept of AxBench: with it and without, to fit and to test. hard: negatives that resemble it."""

    name: str
    train: tuple[list[str], list[str]]
    test: tuple[list[str], list[str]]
    hard: list[str]


def concepts(folder: Path, part: str, texts: int, length: int, seed: int) -> list[Concept]:
    """Returns the concepts of one part of concept10 (Wu et al., arXiv 2501.17148). texts: of each side of each split. length:
    characters of a text. Raises FileNotFoundError, ImportError without pyarrow where only the parquet files are there."""
    train = _table(folder / AXBENCH / part / "generate" / "train_data")
    test = _table(folder / AXBENCH / part / "inference" / "latent_eval_data")
    shared = chosen([row["output"] for row in train if row["category"] == "negative"], texts, seed)
    found = []
    for number in sorted({row["concept_id"] for row in test if row["concept_id"] >= 0}):

        def of(rows: Sequence[dict[str, Any]], category: str, count: int, number: int = number) -> list[str]:
            known = [row["output"] for row in rows if row["category"] == category and row["concept_id"] == number]
            return [text[:length] for text in chosen(known, count, seed + number) if text.strip()]

        name = next(row["output_concept"] for row in test if row["concept_id"] == number)
        found.append(
            Concept(
                name,
                (of(train, "positive", texts), [text[:length] for text in shared if text.strip()]),
                (of(test, "positive", texts), of(test, "negative", texts)),
                of(test, "hard negative", texts),
            )
        )
    return found


def _table(path: Path) -> list[dict[str, Any]]:
    lines = path.with_suffix(".jsonl")
    if lines.exists():
        return [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    import pandas  # noqa: PLC0415 - optional

    rows: list[dict[str, Any]] = pandas.read_parquet(path.with_suffix(".parquet")).to_dict("records")
    return rows


def instructions(folder: Path, split: str, count: int, seed: int) -> tuple[list[str], list[str]]:
    """Returns harmful and harmless instructions of a split (`train`, `val`, `test`) of refusal_direction (Arditi et al., arXiv
    2406.11717). Raises FileNotFoundError."""
    found = []
    for kind in ("harmful", "harmless"):
        rows = json.loads((folder / REFUSAL / f"{kind}_{split}.json").read_text(encoding="utf-8"))
        found.append([row["instruction"] for row in chosen(rows, count, seed)])
    return found[0], found[1]


def verifiable(folder: Path) -> list[dict[str, Any]]:
    """Returns the prompts of IFEval (Zhou et al., arXiv 2311.07911) whose instructions are all verified without punkt: 477 of 541. Raises
    FileNotFoundError."""
    lines = (folder / IFEVAL / IFEVAL / "data" / "input_data.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if PUNKT.isdisjoint(row["instruction_id_list"])]


def checker(folder: Path) -> Callable[[Mapping[str, Any], str], list[bool]]:
    """Imports IFEval's own code. Returns a function of a prompt's row and an answer: by instruction whether it is followed (strict).
    Raises FileNotFoundError, ModuleNotFoundError where a module is missing that it needs."""
    if not (folder / IFEVAL).is_dir():
        raise FileNotFoundError(f"{folder} has no {IFEVAL}: git clone https://github.com/josejg/{IFEVAL}")
    sys.path.insert(0, str(folder / IFEVAL))
    try:
        evaluation = import_module(f"{IFEVAL}.evaluation")
        import_module("langdetect").DetectorFactory.seed = 0  # it samples
    except ModuleNotFoundError as error:
        needed = f"IFEval's code needs {error.name}: pip install immutabledict langdetect nltk"
        raise ModuleNotFoundError(needed, name=error.name) from error
    finally:
        sys.path.remove(str(folder / IFEVAL))
    return lambda row, answer: list(evaluation.test_instruction_following(row, answer).follow_instruction_list)
