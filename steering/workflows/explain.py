"""Finds the concepts that stand out in texts against neutral text, and the tokens that carry them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import TypeAlias

import torch
from cachetools import LRUCache

from steering.concepts.loader import load_neutral_texts
from steering.engine.api import Capture, Engine, Prompt
from steering.pairs import ChatMessage
from steering.schemas.reading import CarryingTokenAnswer, ExplainedTextAnswer, StandingConceptAnswer
from steering.shapes import Float, Tensor
from steering.threads import run_in_thread
from steering.vectors import ConceptVector
from steering.workflows.readout import in_parts
from steering.workflows.texts import as_answers

CARRYING_TOKENS = 5
"""Tokens listed for a concept."""
LEAST_DEVIATION = 1e-6
"""A smaller standard deviation of neutral text is taken for this, so that no division is by zero."""


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One vector read at one layer."""

    vector: ConceptVector
    layer: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Identifies its content: id, digest, layer."""
        return self.vector.id, self.vector.sha256, self.layer


@dataclass(frozen=True, slots=True)
class NeutralStatistics:
    """Mean and standard deviation of a score over neutral texts (their means over tokens), and over all their tokens.

    within: variance of the tokens of one text around its mean. inverse_length: mean over the texts of 1 / tokens.
    """

    mean: float
    deviation: float
    token_mean: float
    token_deviation: float
    within: float
    inverse_length: float

    def deviation_of(self, tokens: int) -> float:
        """Returns the standard deviation of the mean over so many tokens of neutral text; a mean over few varies more."""
        return sqrt(self.deviation**2 + self.within * max(1 / tokens - self.inverse_length, 0.0))


Scores: TypeAlias = Float[Tensor, "token axis"]


class NeutralCache:
    """Statistics of neutral text by vector version and layer, separately for plain texts and for conversations."""

    def __init__(self) -> None:
        self._found: LRUCache[tuple[bool, tuple[str, str, int]], NeutralStatistics] = LRUCache(8192)
        self._reading = asyncio.Lock()

    async def of(self, engine: Engine, axes: Sequence[Axis], conversation: bool) -> list[NeutralStatistics]:
        """Returns statistics for every axis; neutral text is read for those that are not known yet, by one caller at a time."""
        async with self._reading:
            keys = [(conversation, axis.key) for axis in axes]
            known = {key: self._found[key] for key in keys if key in self._found}
            missing = [axis for axis, key in zip(axes, keys, strict=True) if key not in known]
            if missing:
                read = await _read_neutral(engine, missing, conversation)
                known |= {(conversation, axis.key): one for axis, one in zip(missing, read, strict=True)}
                self._found.update(known)
        return [known[key] for key in keys]


async def explain(
    engine: Engine,
    texts: Sequence[Prompt],
    axes: Sequence[Axis],
    neutral: NeutralCache,
    *,
    threshold: float = 2.0,
    most: int = 10,
) -> list[ExplainedTextAnswer]:
    """Returns, per text, the concepts with |z| of at least `threshold`, at most `most` of them, by |z|; of one vector only the
    layer with the largest |z|. Raises what `Engine.capture` raises."""
    statistics: dict[bool, list[NeutralStatistics]] = {}
    for conversation in sorted({_is_conversation(text) for text in texts}):
        statistics[conversation] = await neutral.of(engine, axes, conversation)
    layers = _layers(axes)
    found: list[ExplainedTextAnswer] = []
    async for part, captures in in_parts(engine, texts, layers):
        for text, capture in zip(part, captures, strict=True):
            known = statistics[_is_conversation(text)]
            found.append(await run_in_thread(_explained, engine, capture, axes, known, threshold, most))
    return found


def _layers(axes: Sequence[Axis]) -> tuple[int, ...]:
    return tuple(sorted({axis.layer for axis in axes}))


def _is_conversation(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and isinstance(prompt[0], ChatMessage)


async def _read_neutral(engine: Engine, axes: Sequence[Axis], conversation: bool) -> list[NeutralStatistics]:
    tokens: list[Scores] = []
    texts = load_neutral_texts()
    async for _, captures in in_parts(engine, as_answers(texts) if conversation else texts, _layers(axes)):
        tokens += [await run_in_thread(_scores, capture, axes) for capture in captures]
    return await run_in_thread(neutral_statistics, tokens)


def neutral_statistics(texts: Sequence[Scores]) -> list[NeutralStatistics]:
    """texts: the scores of the tokens of each. Returns the statistics of each axis."""
    means, tokens = torch.stack([scores.mean(dim=0) for scores in texts]), torch.cat(list(texts))
    around = torch.stack([(scores - scores.mean(dim=0)).square().sum(0) for scores in texts]).sum(0)
    within = around / max(len(tokens) - len(texts), 1)
    inverse_length = fmean(1 / len(scores) for scores in texts)
    columns = torch.stack([means.mean(0), means.std(0), tokens.mean(0), tokens.std(0), within]).T.tolist()
    return [
        NeutralStatistics(
            mean,
            max(deviation, LEAST_DEVIATION),
            token_mean,
            max(token_deviation, LEAST_DEVIATION),
            one,
            inverse_length,
        )
        for mean, deviation, token_mean, token_deviation, one in columns
    ]


def _scores(capture: Capture, axes: Sequence[Axis]) -> Scores:
    """Returns the centred score of each axis at each token, without the first token where there are others."""
    start = 1 if capture.activations.shape[1] > 1 else 0
    found = torch.empty(capture.activations.shape[1] - start, len(axes))
    for row, layer in enumerate(_layers(axes)):
        indices = [index for index, axis in enumerate(axes) if axis.layer == layer]
        entries = [axes[index].vector.at(layer) for index in indices]
        projections = capture.activations[row, start:] @ torch.stack([entry.direction for entry in entries]).T
        middles = torch.tensor([entry.middle for entry in entries])
        found[:, indices] = (projections - middles) / torch.tensor([entry.scale for entry in entries])
    return found


def _explained(
    engine: Engine,
    capture: Capture,
    axes: Sequence[Axis],
    statistics: Sequence[NeutralStatistics],
    threshold: float,
    most: int,
) -> ExplainedTextAnswer:
    scores = _scores(capture, axes)
    means = scores.mean(dim=0).tolist()
    best: dict[str, tuple[int, float]] = {}
    for index, (axis, mean, neutral) in enumerate(zip(axes, means, statistics, strict=True)):
        z = (mean - neutral.mean) / neutral.deviation_of(len(scores))
        if abs(z) > abs(best.get(axis.vector.id, (index, 0.0))[1]):
            best[axis.vector.id] = (index, z)
    standing = sorted((one for one in best.values() if abs(one[1]) >= threshold), key=lambda one: -abs(one[1]))
    concepts = [
        StandingConceptAnswer(
            vector=axes[index].vector.id,
            layer=axes[index].layer,
            score=means[index],
            z=z,
            tokens=_carrying(engine, capture, scores[:, index], statistics[index], z),
        )
        for index, z in standing[:most]
    ]
    return ExplainedTextAnswer(tokens=len(capture.token_ids), concepts=concepts)


def _carrying(
    engine: Engine, capture: Capture, scores: Float[Tensor, "token"], neutral: NeutralStatistics, z: float
) -> list[CarryingTokenAnswer]:
    """Lists the tokens that carry a concept most, in the direction of its z."""
    own = (scores - neutral.token_mean) / neutral.token_deviation
    values, places = (own if z > 0 else -own).topk(min(CARRYING_TOKENS, len(own)))
    skipped = len(capture.token_ids) - len(own)
    tokens = [(place + skipped, capture.token_ids[place + skipped]) for place in places.tolist()]
    return [
        CarryingTokenAnswer(
            index=index, id=token, text=engine.tokenizer.token_text(token), z=float(own[index - skipped])
        )
        for value, (index, token) in zip(values.tolist(), tokens, strict=True)
        if value > 0
    ]


def axes_of(vectors: Sequence[ConceptVector], layers: Sequence[int] | None) -> list[Axis]:
    """Returns where each vector is read: at the middle of its recommended layers, or at those of `layers` that it has."""
    found: list[Axis] = []
    for vector in vectors:
        recommended = vector.recommended_layers()
        chosen = (recommended[len(recommended) // 2],) if layers is None else layers
        found += [Axis(vector, layer) for layer in chosen if layer in vector.layers]
    return found
