"""Texts of lists without topics are grouped by the words that they share."""

import random

import pytest

from steering.concepts.loader import load_concept
from steering.extraction.subjects import MOST_TEXTS, subjects_of, with_subjects
from steering.pairs import ChatMessage, PairSet

SUBJECTS = ("octopus arms", "glacier ice", "violin strings", "volcano lava")


def test_texts_that_share_rare_words_are_one_subject_in_both_lists() -> None:
    texts = [(f"the {subject} are word{i} and other{i}", subject) for i, subject in enumerate(SUBJECTS * 4)]
    random.Random(0).shuffle(texts)
    positive, negative = (tuple(text for text, _ in part) for part in (texts[:9], texts[9:]))
    pairs = with_subjects(PairSet(positive, negative, paired=False))
    found = (*pairs.topics, *pairs.negative_topics)
    assert len(set(found)) == len(SUBJECTS)
    assert len({*zip(found, (subject for _, subject in texts), strict=True)}) == len(SUBJECTS)


@pytest.mark.parametrize("concept", ["sentiment", "truthfulness", "toxicity"])
def test_the_two_texts_of_a_pair_are_one_subject(concept: str) -> None:
    pairs = load_concept(concept)
    found = subjects_of((*pairs.positive, *pairs.negative))
    together = [found[i] == found[i + len(pairs)] for i in range(len(pairs))]
    assert sum(together) >= 0.8 * len(pairs)
    assert len(set(found)) >= len(pairs) / 2


def test_what_shares_no_words_stays_alone() -> None:
    assert len(set(subjects_of(["one", "two", "three", "", "!"]))) == 5
    assert subjects_of(["", "!"]) == [0, 1]
    assert subjects_of([(ChatMessage("user", "a red kite"),), "the red kite", "snow"]).count(0) in (1, 2)


def test_pairs_lists_with_topics_and_long_lists_stay_as_they_are() -> None:
    named = PairSet(("a b",), ("a b",), ("t",), paired=False, negative_topics=("u",))
    long = PairSet(tuple(f"text {i}" for i in range(MOST_TEXTS)), ("text",), paired=False)
    for pairs in (PairSet(("a b",), ("a c",)), named, long):
        assert with_subjects(pairs) is pairs
