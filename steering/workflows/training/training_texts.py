"""What a direction is trained on, as the model reads it: pairs as answers in a conversation, and neutral answers to spare."""

from collections.abc import Sequence

from steering.concepts.loader import load_neutral
from steering.engine.api import Engine, GenerationRequest, SamplingParams
from steering.engine.fit_task import NeutralText, TokenPair
from steering.errors import InvalidRequest
from steering.pairs import PairSet
from steering.threads import run_in_thread
from steering.workflows.evaluation.trial_setup import asked
from steering.workflows.extraction.answer_format import as_answers
from steering.workflows.generate import background, mix

NEUTRAL = 24
"""Neutral prompts that the model answers before the training, and whose answers the training is to leave alone."""
ANSWER = SamplingParams(max_tokens=40, temperature=1.0)


async def neutral_texts(engine: Engine, seed: int) -> tuple[NeutralText, ...]:
    """The unsteered model's own answers to the package's neutral prompts; empty answers are left out."""
    prompts = asked(engine, load_neutral()[:NEUTRAL])
    requests = [
        GenerationRequest(prompt, SamplingParams(ANSWER.max_tokens, ANSWER.temperature, seed=mix(seed % 2**63, number)))
        for number, prompt in enumerate(prompts)
    ]
    answers = await background(engine, requests)
    encoded = [engine.tokenizer.encode(prompt) for prompt in prompts]
    return tuple(
        NeutralText(ids + answer.tokens, len(ids))
        for ids, answer in zip(encoded, answers, strict=True)
        if answer.tokens
    )


async def token_pairs(engine: Engine, pairs: PairSet, chosen: Sequence[int]) -> tuple[TokenPair, ...]:
    """The chosen pairs as token ids. What both texts open with is given; scored is what comes after.

    Raises InvalidRequest where none is left whose texts differ and have two tokens.
    """
    return await run_in_thread(_token_pairs, engine, pairs, chosen)


def _token_pairs(engine: Engine, pairs: PairSet, chosen: Sequence[int]) -> tuple[TokenPair, ...]:
    sides = [as_answers(side, engine.info) for side in (pairs.positive, pairs.negative)]
    found = []
    for index in chosen:
        positive, negative = (engine.tokenizer.encode(side[index]) for side in sides)
        shorter = min(len(positive), len(negative))
        if positive == negative or shorter < 2:
            continue
        differs = next((at for at in range(shorter) if positive[at] != negative[at]), shorter)
        found.append(TokenPair(positive, negative, min(max(differs, 1), shorter - 1)))
    if not found:
        raise InvalidRequest(
            "no pair is left to train on: the texts of each are equal, or one token long", param="pairs"
        )
    return tuple(found)
