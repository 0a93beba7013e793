"""Every starter concept keeps the rules of the data: shape, balance of length and poles, no duplicates, a split by topic.

Pair files outside the table (such as true and false statements about cities) follow the same rules.
"""

import json
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from benchmarks.quality.blind.answers import PAIRS, blind_prompts
from benchmarks.quality.concepts import written_prompts
from steering.auroc import auroc
from steering.concepts import CONCEPTS, RENAMED
from steering.concepts.described import ASSISTANT, ROLE, described, search
from steering.concepts.loader import (
    load_concept,
    load_evaluation_prompts,
    load_instructed,
    load_neutral,
    load_report_prompts,
    read_pairs,
    read_prompts,
)
from steering.errors import ConceptNotFound, InvalidRequest
from steering.lab.distil import DistilRequest
from steering.pairs import ChatMessage, Text, split
from steering.vectors import check_name

DATA = files("steering.concepts") / "data"
NAMES = {path.name for path in DATA.iterdir()}
PAIR_FILES = sorted(
    {f"{concept}.jsonl" for concept in CONCEPTS}
    | {
        name
        for name in NAMES
        if name.endswith(".jsonl")
        and not name.endswith((".prompts.jsonl", ".report.jsonl", "neutral.jsonl", "described.jsonl", "starter.jsonl"))
    }
)
every_concept = pytest.mark.parametrize("concept", CONCEPTS)
every_file = pytest.mark.parametrize("file", PAIR_FILES)


def records(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / file).read_text(encoding="utf-8").splitlines()]


def words(file: str, pole: str) -> np.ndarray:
    return np.array([len(record[pole].split()) for record in records(file)], dtype=np.float64)


def test_the_table_holds_the_seven_concepts_with_two_poles_each() -> None:
    assert list(CONCEPTS) == [
        "sentiment", "truthfulness", "toxicity", "specificity", "formality", "refusal", "sycophancy",
    ]  # fmt: skip
    for entry in CONCEPTS.values():
        assert len({entry.positive, entry.negative, entry.description, ""}) == 4


def test_concepts_in_words_have_names_of_their_own_and_two_poles() -> None:
    entries = described()
    kinds = Counter(entry.kind for entry in entries.values())
    assert kinds[ROLE] >= 30
    assert len(entries) - kinds[ROLE] >= 50
    assert not {*entries} & {*CONCEPTS, *RENAMED}
    assert len(records("described.jsonl")) == len(entries) - 1  # no name twice; the assistant is not in the file
    for name, entry in entries.items():
        assert check_name(name) == name
        assert len({entry.positive, entry.negative, entry.description, ""}) == 4
        assert entry.description.endswith(".")
    assert len({entry.positive for entry in entries.values()}) == len(entries)


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("talks like a sailor", "sailor"),
        ("Legal language", "legal"),
        ("sceptical", "skeptical"),  # in its description, in British spelling
        ("happyness", "joyful"),
        ("short answers", "concise"),
        ("refusal", "refusal"),
        ("assistant", ASSISTANT),
    ],
)
def test_a_search_finds_concepts_by_their_words_and_by_parts_of_them(text: str, best: str) -> None:
    assert best in search(text)[:2]
    assert len(search(text)) < 30


def test_a_search_finds_nothing_where_nothing_is_shared() -> None:
    assert search("xqzvw") == []


@every_file
def test_shape(file: str) -> None:
    for record in records(file):
        assert list(record) == ["id", "topic", "prompt", "positive", "negative"]
        for key in ("id", "topic", "positive", "negative"):
            assert record[key] == record[key].strip() != ""
        assert record["prompt"] is None or record["prompt"].strip() == record["prompt"] != ""


@every_file
def test_at_least_sixty_pairs_over_ten_topics(file: str) -> None:
    topics = Counter(record["topic"] for record in records(file))
    assert topics.total() >= 60
    assert len(topics) >= 10
    assert max(topics.values()) <= 0.2 * topics.total()


@every_file
def test_no_id_and_no_text_comes_twice(file: str) -> None:
    rows = records(file)
    texts = [record[pole] for record in rows for pole in ("positive", "negative")]
    assert len({record["id"] for record in rows}) == len(rows)
    assert len({text.casefold() for text in texts}) == len(texts)


@every_file
def test_the_two_sides_are_of_one_length_pair_by_pair_and_on_average(file: str) -> None:
    positive, negative = words(file, "positive"), words(file, "negative")
    assert (np.maximum(positive, negative) <= 1.2 * np.minimum(positive, negative)).all()
    assert positive.mean() == pytest.approx(negative.mean(), rel=0.05)


@every_file
def test_neither_pole_can_be_recognized_by_its_length_or_its_last_character(file: str) -> None:
    assert 0.3 < auroc(words(file, "positive"), words(file, "negative")) < 0.7
    assert all(record["positive"][-1] == record["negative"][-1] for record in records(file))


@every_file
@pytest.mark.parametrize("seed", range(5))
def test_the_split_by_topic_leaves_enough_on_both_sides(file: str, seed: int) -> None:
    pairs = read_pairs((DATA / file).read_text(encoding="utf-8").split("\n"), source=file)
    parts = split(pairs, 0.3, seed)
    fitted, held = ({pairs.topics[i] for i in part} for part in (parts.fit_positive, parts.held_positive))
    assert not fitted & held
    assert len(held) >= 3
    assert len(parts.held_positive) >= 18
    assert len(parts.fit_positive) >= 36


@every_concept
def test_loading_gives_what_the_file_says(concept: str) -> None:
    def side(record: dict[str, Any], pole: str) -> Text:
        if record["prompt"] is None:
            return str(record[pole])
        return (ChatMessage("user", record["prompt"]), ChatMessage("assistant", record[pole]))

    pairs, rows = load_concept(concept), records(f"{concept}.jsonl")
    assert pairs.paired
    assert pairs.positive == tuple(side(record, "positive") for record in rows)
    assert pairs.negative == tuple(side(record, "negative") for record in rows)
    assert pairs.topics == tuple(record["topic"] for record in rows)


@every_concept
def test_prompts_that_choose_report_or_are_read_blind_are_different_and_not_among_the_pairs(concept: str) -> None:
    known = {record["prompt"] for record in records(f"{concept}.jsonl")} | {*load_neutral(), *load_instructed()}
    for prompts, count in (
        (load_evaluation_prompts(concept), 20),
        (load_report_prompts(concept), 20),
        (written_prompts(concept), 0),
        (blind_prompts(concept), PAIRS),
    ):
        assert len(prompts) >= count
        assert len(set(prompts)) == len(prompts)
        assert not known & set(prompts)
        known |= {*prompts}


def test_no_vector_is_made_from_prompts_on_which_it_is_judged_by_default() -> None:
    """The prompts that are answered under an instruction are none of those that evaluations take."""
    assert not {*load_instructed()} & {*load_neutral()}
    assert {*DistilRequest("pirate", "Answer as a pirate.").asked} <= {*load_instructed()}


@pytest.mark.parametrize("load", [load_neutral, load_instructed])
def test_neutral_prompts_are_many_and_belong_to_no_concept(load: Callable[[], tuple[str, ...]]) -> None:
    neutral = load()
    taken = {record["prompt"] for file in PAIR_FILES for record in records(file)}
    own = (load_evaluation_prompts, load_report_prompts)
    taken |= {prompt for concept in CONCEPTS for load_own in own for prompt in load_own(concept)}
    assert len(neutral) >= 50
    assert len(set(neutral)) == len(neutral)
    assert not taken & set(neutral)


@pytest.mark.parametrize("load", [load_concept, load_evaluation_prompts, load_report_prompts])
def test_an_unknown_concept_is_not_found_naming_the_known_ones(load: Any) -> None:
    with pytest.raises(ConceptNotFound, match="sentiment, truthfulness"):
        load("../../secret")


@pytest.mark.parametrize("load", [load_concept, load_evaluation_prompts, load_report_prompts])
def test_an_earlier_name_names_the_new_one(load: Any) -> None:
    for old, new in RENAMED.items():
        assert new in CONCEPTS
        with pytest.raises(ConceptNotFound, match=f"{old!r} is now named {new!r}"):
            load(old)


GOOD = '{"positive": "yes", "negative": "no"}'


def test_a_callers_own_lines_need_two_sides_and_may_have_the_rest() -> None:
    full = '{"id": "1", "topic": "t", "prompt": "Well?", "positive": "Yes", "negative": "No"}'
    pairs = read_pairs([GOOD, "", full, '{"positive": "a", "negative": "b", "topic": "t", "prompt": null}'])
    assert pairs.positive == ("yes", (ChatMessage("user", "Well?"), ChatMessage("assistant", "Yes")), "a")
    assert pairs.topics == ("#0", "t", "t")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "nested deeper|not valid JSON"),
        ("[1]", "expected an object"),
        ('{"positive": "a"}', "'negative' must be a text"),
        ('{"positive": "a", "negative": " "}', "'negative' must be a text"),
        ('{"positive": 1, "negative": "b"}', "'positive' must be a text"),
        ('{"positive": "a", "negative": "b", "topic": 3}', "'topic' must be a text"),
        ('{"positive": "a", "negative": "b", "label": "c"}', "unknown key 'label'"),
        ('{"positive": "a", "negative": "b", "positive": "c"}', "a key is given twice"),
        ('{"positive": "\\ud800", "negative": "b"}', "lone surrogate"),
        ('{"positive": "a", "negative": "a"}', "are the same text"),
        (GOOD, "the same pair as on line 1"),
        ("1" * 5000, "line 3"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refusal:
        read_pairs([GOOD, "", line], source="mine.jsonl")
    assert refusal.value.message.startswith("mine.jsonl, line 3: ")
    assert len(refusal.value.message) < 300


def test_repeated_ids_and_empty_files_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="line 2: the same id as on line 1"):
        read_pairs([f'{{"id": "x", "positive": "{side}", "negative": "no"}}' for side in ("a", "b")])
    with pytest.raises(InvalidRequest, match="no pairs found"):
        read_pairs(["", "  "])


def test_prompt_lines_follow_the_same_rules() -> None:
    assert read_prompts(['{"prompt": "One?"}', '{"id": "2", "prompt": "Two?"}']) == ("One?", "Two?")
    with pytest.raises(InvalidRequest, match="line 2: the same prompt as on line 1"):
        read_prompts(['{"prompt": "One?"}'] * 2)
    with pytest.raises(InvalidRequest, match="line 1: unknown key 'text'"):
        read_prompts(['{"text": "One?"}'])
