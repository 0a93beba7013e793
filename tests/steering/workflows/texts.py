"""Texts for the LinearEngine: contrasting pairs in its own words, by topic, from a seed."""

import random

from steering.pairs import ChatMessage, PairSet
from tests.steering.workflows.linear_tokenizer import NEGATIVE, NEUTRAL, POSITIVE


def planted_texts(count: int = 24, seed: int = 3) -> tuple[list[str], list[str]]:
    """Positive and negative texts that share their neutral words and differ in the polar ones."""
    rng = random.Random(seed)
    positive, negative = [], []
    for _ in range(count):
        frame = [rng.choice(NEUTRAL) for _ in range(4)]
        positive.append(" ".join([*frame[:2], rng.choice(POSITIVE), rng.choice(POSITIVE), *frame[2:]]))
        negative.append(" ".join([*frame[:2], rng.choice(NEGATIVE), rng.choice(NEGATIVE), *frame[2:]]))
    return positive, negative


def planted_pairs(count: int = 24, topics: int = 8, seed: int = 3) -> PairSet:
    """The planted texts as pairs."""
    positive, negative = planted_texts(count, seed)
    return PairSet(tuple(positive), tuple(negative), tuple(f"topic{i % topics}" for i in range(count)))


def conversation(question: str, reply: str | None = None) -> tuple[ChatMessage, ...]:
    """A question, answered or not."""
    asked = ChatMessage("user", question)
    return (asked,) if reply is None else (asked, ChatMessage("assistant", reply))
