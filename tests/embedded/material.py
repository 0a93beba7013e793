"""What the tests on the embedded model work with: its data files over again, and vectors made from a few of their pairs."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from steering.concepts import CONCEPTS
from steering.concepts.loader import read_pairs
from steering.engine.api import Engine
from steering.pairs import ChatMessage, PairSet, Text
from steering.vectors import ConceptVector
from steering.workflows.extract import ExtractionRequest, extract

LAYERS = (10, 14, 18)
METHODS = ("mean_difference", "probe")
CITIES = "cities"


def pairs_of(name: str) -> PairSet:
    """All pairs of a data file, including those outside the table of concepts."""
    path = files("steering.concepts") / "data" / f"{name}.jsonl"
    return read_pairs(path.read_text(encoding="utf-8").splitlines(), source=name)


def words(text: Text) -> str | list[dict[str, str]]:
    """A text as a request's JSON has it."""
    if isinstance(text, str):
        return text
    return [{"role": message.role, "content": message.content} for message in text]


def pair_words(name: str) -> list[dict[str, Any]]:
    """The pairs of a data file as `pairs` of a request."""
    pairs = pairs_of(name)
    return [
        {"positive": words(positive), "negative": words(negative), "topic": topic}
        for (positive, negative), topic in zip(pairs, pairs.topics, strict=True)
    ]


def question(text: str) -> tuple[ChatMessage, ...]:
    """A user's message."""
    return (ChatMessage("user", text),)


def asked(text: str) -> list[dict[str, str]]:
    """The same as `messages` of a request."""
    return [{"role": "user", "content": text}]


def few_pairs(name: str, count: int) -> PairSet:
    """The first pairs of a data file: what a test needs that does not judge the vector."""
    whole = pairs_of(name)
    return PairSet(whole.positive[:count], whole.negative[:count], whole.topics[:count])


async def small_vectors(engine: Engine) -> Mapping[str, ConceptVector]:
    """Every data file by every one of METHODS at LAYERS: `sentiment`, `sentiment.probe`, and so on. Made to differ."""
    found = {}
    for name in (*CONCEPTS, CITIES):
        for method in METHODS:
            vector = name if method == METHODS[0] else f"{name}.{method}"
            request = ExtractionRequest(vector, few_pairs(name, 4), method=method, layers=LAYERS, holdout=0.0)
            found[vector] = await extract(engine, request)
    return found
