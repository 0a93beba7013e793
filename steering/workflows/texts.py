"""Turns pairs and prompts into what a model reads: messages or transcripts, replies, token ids to train on."""

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from math import ceil
from statistics import fmean

from steering.concepts.loader import load_instructed, load_neutral
from steering.engine.api import (
    CapturePrompt,
    Engine,
    NeutralText,
    Position,
    Prompt,
    SamplingParams,
    TokenPair,
    TrainingSettings,
)
from steering.errors import InvalidRequest
from steering.pairs import ChatMessage, PairSet, Text
from steering.workflows.generate import background, seeded
from steering.workflows.measures import shared_prefix

NEUTRAL = 24
"""Neutral prompts the model answers before training; the trained direction should leave those answers unchanged."""
ANSWER = SamplingParams(max_tokens=40, temperature=1.0)


def as_prompts(engine: Engine, texts: Sequence[str]) -> tuple[Prompt, ...]:
    """Wraps texts as user messages, or as the start of a plain transcript where the model has no chat template."""
    messages = [(ChatMessage("user", text),) for text in texts]
    return tuple(messages) if engine.info.chat_template else tuple(transcript(one) for one in messages)


def transcript(messages: Sequence[ChatMessage]) -> str:
    """Writes a conversation, which may be empty, as plain text for models without a chat template. It ends where a reply begins or ends."""
    lines = [f"{message.role.capitalize()}: {message.content}" for message in messages]
    return "\n\n".join(lines if messages and messages[-1].role == "assistant" else [*lines, "Assistant:"])


def question_of(text: str) -> str:
    """Returns what the user asks in a transcript of one message, see `as_prompts`; any other text as it is."""
    found = re.fullmatch(r"User: (.*)\n\nAssistant:", text, re.DOTALL)
    return text if found is None else found[1]


def as_answers(texts: Sequence[Text]) -> tuple[Text, ...]:
    """Wraps plain text i as the reply to neutral prompt i, alike for both texts of a pair; conversations stay."""
    prompts = cycle(load_neutral())
    return tuple(
        conversation(prompt, text) if isinstance(text, str) else text
        for prompt, text in zip(prompts, texts, strict=False)
    )


def conversation(prompt: str, reply: str) -> tuple[ChatMessage, ...]:
    """Returns a prompt of the user and the assistant's reply."""
    return ChatMessage("user", prompt), ChatMessage("assistant", reply)


def capture_prompts(engine: Engine, texts: Sequence[Text]) -> list[CapturePrompt]:
    """Returns texts as the engine reads them; conversations as transcripts where there is no chat template."""
    if engine.info.chat_template:
        return [CapturePrompt(text) for text in texts]
    prompts = []
    for text in texts:
        if isinstance(text, str):
            prompts.append(CapturePrompt(text))
            continue
        whole, length = engine.tokenizer.encode(transcript(text)), None
        if text[-1].role == "assistant":  # the prompt ends where the content of the last reply begins
            before = engine.tokenizer.encode(transcript(text[:-1]))
            length = max(1, min(shared_prefix(whole, before), len(whole) - 1))
        prompts.append(CapturePrompt(whole, prompt_length=length))
    return prompts


def subset(pairs: PairSet, chosen: Sequence[int]) -> PairSet:
    """Returns some of the pairs, by their indices."""
    positive, negative = (tuple(side[i] for i in chosen) for side in (pairs.positive, pairs.negative))
    return PairSet(positive, negative, tuple(pairs.topics[i] for i in chosen) if pairs.topics else ())


def default_position(pairs: PairSet) -> Position:
    """Chooses where pairs are read: replies at "response_mean", plain texts at "last", both at "mean"."""
    plain = {isinstance(text, str) for text in (*pairs.positive, *pairs.negative)}
    if plain == {True}:
        return "last"
    return "mean" if True in plain else "response_mean"


async def neutral_texts(engine: Engine, seed: int) -> tuple[NeutralText, ...]:
    """Generates the unsteered model's answers to neutral prompts that no evaluation takes by default; empty answers are left out."""
    prompts = as_prompts(engine, load_instructed()[:NEUTRAL])
    answers = await background(engine, seeded(prompts, replace(ANSWER, seed=seed % 2**63)))
    encoded = [engine.tokenizer.encode(prompt) for prompt in prompts]
    return tuple(
        NeutralText(ids + answer.tokens, len(ids))
        for ids, answer in zip(encoded, answers, strict=True)
        if answer.tokens
    )


def text_lengths(engine: Engine, pairs: PairSet) -> list[int]:
    """Returns the tokens of each text of the pairs as `token_pairs` reads it."""
    sides = (capture_prompts(engine, as_answers(side)) for side in (pairs.positive, pairs.negative))
    return [len(engine.tokenizer.encode(one.prompt)) for side in sides for one in side]


def training_tokens(engine: Engine, lengths: Sequence[int], settings: TrainingSettings, layers: int) -> int:
    """Returns about how many tokens training reads and writes. lengths: of the texts of the pairs, which are read without steering once,
    and with both signs whenever a step draws their pair. The neutral answers of a step are read twice."""
    prompts = as_prompts(engine, load_instructed()[:NEUTRAL]) if settings.kl_coefficient > 0.0 else ()
    neutral = [len(engine.tokenizer.encode(one)) + ANSWER.max_tokens for one in prompts]
    step = 4 * settings.batch * fmean(lengths)
    step += 2 * max(1, settings.batch // 2) * fmean(neutral) if neutral else 0.0
    return ceil(layers * (sum(lengths) + settings.steps * step)) + sum(neutral)


def token_pairs(engine: Engine, pairs: PairSet, chosen: Sequence[int]) -> tuple[TokenPair, ...]:
    """Encodes pairs, their common prefix as context. Raises InvalidRequest where none differs and has two tokens."""
    sides = [capture_prompts(engine, as_answers(side)) for side in (pairs.positive, pairs.negative)]
    found = []
    for index in chosen:
        positive, negative = (engine.tokenizer.encode(side[index].prompt) for side in sides)
        shorter = min(len(positive), len(negative))
        if positive == negative or shorter < 2:
            continue
        start = min(max(shared_prefix(positive, negative), 1), shorter - 1)
        found.append(TokenPair(positive, negative, start))
    if not found:
        raise InvalidRequest(
            "no pair is left to train on: the texts of each are equal or one token long", param="pairs"
        )
    return tuple(found)
