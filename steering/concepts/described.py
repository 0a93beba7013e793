"""Concepts in words: traits, tones, styles, topics and roles, each in a sentence with two poles. The loaded model writes the pairs
(steering/workflows/describe.py), or is instructed with the positive pole and distilled (steering/lab/distil.py).

ASSISTANT is the axis from all roles to the model's answers without an instruction (assistant axis, arXiv 2601.10387).
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from steering.concepts import CONCEPTS, ConceptEntry, read_entries

ASSISTANT = "assistant"
ROLE = "role"
LEAST = 0.1
"""Cosine up to which a concept does not match."""
_AXIS = ConceptEntry(
    positive="the model's own answers, without an instruction",
    negative="answers in the roles of the list, one after the other",
    description="Answers are those of the model as its default assistant, rather than of a character that it plays.",
    kind="persona",
)


@cache
def described() -> Mapping[str, ConceptEntry]:
    """Returns the concepts in words by name."""
    return {ASSISTANT: _AXIS} | read_entries("described.jsonl")


def roles() -> tuple[str, ...]:
    """Returns the roles in words."""
    return tuple(entry.positive for entry in described().values() if entry.kind == ROLE)


def all_concepts() -> Mapping[str, ConceptEntry]:
    """Returns the starter concepts, then those in words."""
    return {**CONCEPTS, **described()}


def search(text: str) -> list[str]:
    """Returns the names of the concepts that share words, or parts of words, with a text, the best first: by the cosine
    of tf-idf weights of character n-grams inside words, which also finds other and misspelled forms."""
    weights, rows = _index()
    scores = (rows @ weights.transform([text.lower()]).T).toarray().ravel().tolist()
    found = sorted(zip(scores, all_concepts(), strict=True), key=lambda one: -one[0])
    return [name for score, name in found if score > LEAST]


@cache
def _index() -> tuple[Any, Any]:
    """Returns the vectorizer and the weights of each concept."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415 - takes a second, and only a search needs it

    weights = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 6), sublinear_tf=True)
    texts = [
        f"{name} {name} {entry.kind} {entry.positive} {entry.description}" for name, entry in all_concepts().items()
    ]
    return weights, weights.fit_transform(texts)
