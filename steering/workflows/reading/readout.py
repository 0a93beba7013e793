"""Reads texts against vectors: the score of each concept, token by token and layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Prompt
from steering.engine.readings import Reading
from steering.errors import InvalidRequest
from steering.plan.layers import check_model, resolve_layers
from steering.shapes import Float, Residual, Scores, Tensor
from steering.spec import Layers
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, LayerDirection

ACTIVATIONS_BOUND = 16_000_000
"""Activations held at a time, in numbers (64 MB); more texts than fit are read in turn."""


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """One vector at one layer."""

    vector: str
    layer: int
    entry: LayerDirection


@dataclass(frozen=True, slots=True, eq=False)
class ReadoutRequest:
    """texts: strings, conversations or token ids. vectors: by the name used in the result."""

    texts: tuple[Prompt, ...]
    vectors: Mapping[str, ConceptVector]
    layers: Layers = "recommended"


@dataclass(frozen=True, slots=True)
class LayerReadout:
    """One score per token, (r . direction - m) / kappa: natural scales, centred on the poles, as in conditions.

    mean and max leave out the first position, where models keep a very large residual that belongs to no word. centred:
    whether the vector has class means; else m is 0.
    """

    vector: str
    layer: int
    scores: tuple[float, ...]
    mean: float
    max: float
    last: float
    centred: bool = True


@dataclass(frozen=True, slots=True)
class TextReadout:
    """One text: its tokens as ids and as text, and a readout for each vector at each of its layers."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    readouts: tuple[LayerReadout, ...]


async def readout(engine: Engine, request: ReadoutRequest) -> tuple[TextReadout, ...]:
    """Reads the texts in order. Raises InvalidRequest for no texts, no vectors, or layers that do not exist, and
    VectorModelMismatch for another model's vector."""
    axes = _axes(engine, request)
    layers = tuple(sorted({axis.layer for axis in axes}))
    found: list[TextReadout] = []
    for part in await run_in_thread(parts, engine, request.texts, len(layers)):
        captures = await engine.capture(
            [CapturePrompt(text) for text in part], CaptureSpec(layers=layers, position="all"), priority=0
        )
        found += await run_in_thread(_texts, engine, captures, layers, axes)
    return tuple(found)


def _axes(engine: Engine, request: ReadoutRequest) -> tuple[_Axis, ...]:
    """Resolves every vector at every layer that is to be read."""
    if not request.texts:
        raise InvalidRequest("a readout needs at least one text", param="texts")
    if not request.vectors:
        raise InvalidRequest("a readout needs at least one vector", param="vectors")
    for vector in request.vectors.values():
        check_model(vector, engine.info)
    return tuple(
        _Axis(name, layer, vector.at(layer))
        for name, vector in request.vectors.items()
        for layer in resolve_layers(request.layers, vector, engine.info.layer_count)
    )


async def read_texts(engine: Engine, texts: Sequence[str], readings: Sequence[Reading]) -> tuple[dict[str, float], ...]:
    """Returns, per text, the mean score of each reading as the unsteered model reads the text alone; the same numbers as
    `readout`. Empty for an empty text, or without readings."""
    scores: list[dict[str, float]] = [{} for _ in texts]
    written = [index for index, text in enumerate(texts) if text]
    if not readings or not written:
        return tuple(scores)
    layers = tuple(sorted({reading.layer for reading in readings}))
    remaining = iter(written)
    for part in await run_in_thread(parts, engine, [texts[index] for index in written], len(layers)):
        captures = await engine.capture(
            [CapturePrompt(text) for text in part], CaptureSpec(layers=layers, position="all"), priority=0
        )
        for capture in captures:
            index = next(remaining)
            for reading in readings:
                residual = capture.activations[layers.index(reading.layer)]
                scores[index][reading.name] = _mean(reading.scores(residual))
    return tuple(scores)


def parts(engine: Engine, texts: Sequence[Prompt], layers: int) -> list[tuple[Prompt, ...]]:
    """Groups texts whose activations at that many layers fit into ACTIVATIONS_BOUND; a longer text is alone."""
    runs: list[list[Prompt]] = []
    held = 0
    for text in texts:
        size = len(engine.tokenizer.encode(text)) * layers * engine.info.d_model
        if not runs or held + size > ACTIVATIONS_BOUND:
            runs.append([])
            held = 0
        runs[-1].append(text)
        held += size
    return [tuple(run) for run in runs]


def _texts(
    engine: Engine, captures: Sequence[Capture], layers: tuple[int, ...], axes: Sequence[_Axis]
) -> list[TextReadout]:
    return [
        TextReadout(
            token_ids=capture.token_ids,
            tokens=tuple(engine.tokenizer.token_text(token) for token in capture.token_ids),
            readouts=tuple(_summary(axis, capture.activations[layers.index(axis.layer)]) for axis in axes),
        )
        for capture in captures
    ]


def _summary(axis: _Axis, residual: Residual) -> LayerReadout:
    entry = axis.entry
    scores = Reading(axis.vector, axis.layer, entry.direction, entry.scale, entry.middle).scores(residual)
    return LayerReadout(
        axis.vector,
        axis.layer,
        tuple(scores.tolist()),
        _mean(scores),
        float(_spoken(scores).max()),
        float(scores[-1]),
        entry.centred,
    )


def _spoken(scores: Scores) -> Float[Tensor, "spoken"]:
    """Returns the scores without the first position, where there are others."""
    return scores[1:] if len(scores) > 1 else scores


def _mean(scores: Scores) -> float:
    return float(_spoken(scores).mean())
