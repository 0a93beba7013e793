"""Texts that stand alone, put as answers: steering changes answers, so answers are what its directions are made from."""

from collections.abc import Sequence

from steering.concepts.loader import load_neutral
from steering.engine.api import Position
from steering.model.info import ModelInfo
from steering.pairs import ChatMessage, PairSet, Text


def as_answers(texts: Sequence[Text], info: ModelInfo) -> tuple[Text, ...]:
    """Conversations as they are; text i that stands alone as the assistant's answer to neutral prompt i, where the model
    has a chat template. The two sides of a pair have one index, hence one prompt."""
    if not info.chat_template:
        return tuple(texts)
    prompts = load_neutral()
    return tuple(
        (ChatMessage("user", prompts[index % len(prompts)]), ChatMessage("assistant", text))
        if isinstance(text, str)
        else text
        for index, text in enumerate(texts)
    )


def usual_position(pairs: PairSet) -> Position:
    """Where pairs are read when nobody says: over the answer where all are answers to a prompt, at the last token where all
    stand alone, as statements do, and over all tokens where some do (measured in docs/dose_response.md)."""
    alone = {isinstance(text, str) for text in (*pairs.positive, *pairs.negative)}
    if alone == {True}:
        return "last"
    return "mean" if True in alone else "response_mean"
