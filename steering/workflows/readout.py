"""Reads texts against vectors: the score of each concept, token by token and layer by layer."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TypeVar

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Prompt, Tokenizer
from steering.errors import InvalidRequest
from steering.injection.readings import Reading
from steering.plan.layers import check_model, resolve_layers
from steering.schemas.reading import LayerScores, ReadToken, ReadVector, TextReadoutAnswer
from steering.shapes import Float, Scores, Tensor
from steering.spec import Layers
from steering.threads import run_in_thread
from steering.vectors import ConceptVector

T = TypeVar("T")
ACTIVATIONS_BOUND = 16_000_000
"""Activations held at a time, in numbers (64 MB); more texts than fit are read in turn."""


def reading_at(name: str, vector: ConceptVector, layers: Sequence[int]) -> Reading:
    """Returns the readout of a vector at the middle one of the layers, in natural scales."""
    layer = layers[len(layers) // 2]
    entry = vector.at(layer)
    return Reading(name, layer, entry.direction, entry.scale, entry.middle)


async def readout(
    engine: Engine, texts: Sequence[Prompt], vectors: Mapping[str, ConceptVector], layers: Layers = "recommended"
) -> list[TextReadoutAnswer]:
    """Reads texts (strings, conversations or token ids) in order. vectors: by the name used in the result.

    Scores are (r . direction - m) / kappa per token: natural scales, centred on the poles, as in conditions. mean and max leave
    out the first position, where models keep a very large residual that belongs to no word. Without class means m is 0.

    Raises InvalidRequest for no texts, no vectors, or layers that do not exist, VectorModelMismatch for another model's vector.
    """
    if not texts:
        raise InvalidRequest("a readout needs at least one text", param="texts")
    if not vectors:
        raise InvalidRequest("a readout needs at least one vector", param="vectors")
    axes: list[tuple[Reading, bool]] = []
    for name, vector in vectors.items():
        check_model(vector, engine.info)
        chosen = sorted(resolve_layers(layers, vector, engine.info.layer_count))
        axes += [(reading_at(name, vector, (layer,)), vector.at(layer).centred) for layer in chosen]
    read = tuple(sorted({reading.layer for reading, _ in axes}))
    found: list[TextReadoutAnswer] = []
    async for _, captures in in_parts(engine, texts, read):
        found += await run_in_thread(lambda part: [_scored(engine, one, read, axes) for one in part], captures)
    return found


def _scored(
    engine: Engine, capture: Capture, layers: tuple[int, ...], axes: Sequence[tuple[Reading, bool]]
) -> TextReadoutAnswer:
    found: dict[str, dict[str, LayerScores]] = {}
    for reading, centred in axes:
        scores = reading.scores(capture.activations[layers.index(reading.layer)])
        found.setdefault(reading.name, {})[str(reading.layer)] = LayerScores(
            scores=scores.tolist(),
            mean=_mean(scores),
            max=float(_spoken(scores).max()),
            last=float(scores[-1]),
            centred=centred,
        )
    return TextReadoutAnswer(tokens=read_tokens(engine.tokenizer, capture.token_ids), readout=found)


def used_vectors(vectors: Mapping[str, ConceptVector]) -> dict[str, ReadVector]:
    """Reports the versions that were used, by the names given."""
    return {name: ReadVector(id=vector.id, sha256=vector.sha256) for name, vector in vectors.items()}


def read_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> list[ReadToken]:
    """Lists the tokens of a text that was read."""
    return [ReadToken(id=token, text=tokenizer.token_text(token)) for token in ids]


async def read_texts(engine: Engine, texts: Sequence[str], readings: Sequence[Reading]) -> tuple[dict[str, float], ...]:
    """Returns, per text, the mean score of each reading as the unsteered model reads the text alone; the same numbers as
    `readout`. Empty for an empty text, or without readings."""
    layers = tuple(sorted({reading.layer for reading in readings}))
    written = [text for text in texts if text and readings]
    scores: list[dict[str, float]] = []
    async for _, captures in in_parts(engine, written, layers):
        for capture in captures:
            residuals = dict(zip(layers, capture.activations, strict=True))
            scores.append({one.name: _mean(one.scores(residuals[one.layer])) for one in readings})
    remaining = iter(scores)
    return tuple(next(remaining) if text and readings else {} for text in texts)


async def in_parts(
    engine: Engine, texts: Sequence[Prompt], layers: tuple[int, ...]
) -> AsyncIterator[tuple[Sequence[Prompt], Sequence[Capture]]]:
    """Reads texts at all their positions; yields (texts, captures) of as many at a time as may be held."""
    for part in await run_in_thread(parts, engine, texts, len(layers)):
        yield part, await engine.capture([CapturePrompt(text) for text in part], CaptureSpec(layers, "all"), priority=0)


def parts(engine: Engine, texts: Sequence[Prompt], layers: int) -> list[list[Prompt]]:
    """Groups texts whose activations at that many layers fit into ACTIVATIONS_BOUND; a longer text is alone."""
    width = layers * engine.info.d_model
    return grouped(texts, lambda text: len(engine.tokenizer.encode(text)) * width, ACTIVATIONS_BOUND)


def grouped(items: Sequence[T], size: Callable[[T], int], bound: int) -> list[list[T]]:
    """Groups neighbours whose sizes together are at most `bound`; a larger item is alone."""
    groups: list[list[T]] = []
    held = 0
    for item in items:
        needed = size(item)
        if not groups or held + needed > bound:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += needed
    return groups


def _spoken(scores: Scores) -> Float[Tensor, "spoken"]:
    """Returns the scores without the first position, where there are others."""
    return scores[1:] if len(scores) > 1 else scores


def _mean(scores: Scores) -> float:
    return float(_spoken(scores).mean())
