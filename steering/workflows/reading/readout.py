"""Texts read against vectors: how much of each concept is there, token by token and layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Prompt
from steering.errors import InvalidRequest
from steering.plan.layers import check_model, resolve_layers
from steering.shapes import Float, Tensor
from steering.spec import Layers
from steering.threads import run_in_thread
from steering.vectors import ConceptVector
from steering.workflows.progress import Progress, ignore_progress

ACTIVATIONS_BOUND = 16_000_000
"""Activations held at a time, in numbers (64 MB); more texts than fit are read in turn."""

Places: TypeAlias = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class ReadoutRequest:
    """texts: strings, conversations or token ids. vectors: by the name that the answer is to use."""

    texts: tuple[Prompt, ...]
    vectors: Mapping[str, ConceptVector]
    layers: Layers = "recommended"


@dataclass(frozen=True, slots=True)
class LayerReadout:
    """One score a token, r . direction / kappa: natural scales, on the axis where a bound of a condition lies too.

    mean and max leave out the first position, where models keep a huge residual that belongs to no word.
    """

    vector: str
    layer: int
    scores: tuple[float, ...]
    mean: float
    max: float
    last: float


@dataclass(frozen=True, slots=True)
class TextReadout:
    """One text: its tokens, as ids and as their own text, and a readout for each vector at each of its layers."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    readouts: tuple[LayerReadout, ...]


async def readout(
    engine: Engine, request: ReadoutRequest, *, progress: Progress | None = None, priority: int = 0
) -> tuple[TextReadout, ...]:
    """In the order of the texts. Raises InvalidRequest for no texts, no vectors, or layers that are not there, and
    VectorModelMismatch for another model's vector."""
    report = progress or ignore_progress
    places = _places(engine, request)
    layers = tuple(sorted({layer for _, layer in places}))
    axes = torch.stack([_axis(request.vectors[name], layer) for name, layer in places])
    found: list[TextReadout] = []
    for part in await run_in_thread(parts, engine, request.texts, len(layers)):
        captures = await engine.capture(
            [CapturePrompt(text) for text in part], CaptureSpec(layers=layers, position="all"), priority=priority
        )
        found += await run_in_thread(_texts, engine, captures, places, layers, axes)
        report(len(found), len(request.texts), "reading texts")
    return tuple(found)


def _places(engine: Engine, request: ReadoutRequest) -> Places:
    """(vector name, layer) of everything that is to be read."""
    if not request.texts:
        raise InvalidRequest("a readout needs at least one text", param="texts")
    if not request.vectors:
        raise InvalidRequest("a readout needs at least one vector", param="vectors")
    for vector in request.vectors.values():
        check_model(vector, engine.info)
    return tuple(
        (name, layer)
        for name, vector in request.vectors.items()
        for layer in resolve_layers(request.layers, vector, engine.info.layer_count)
    )


def _axis(vector: ConceptVector, layer: int) -> Float[Tensor, "d_model"]:
    """direction / kappa, so that one product gives natural scales."""
    entry = vector.at(layer)
    return entry.direction / entry.scale


def parts(engine: Engine, texts: Sequence[Prompt], layers: int) -> list[tuple[Prompt, ...]]:
    """Runs of texts whose activations at that many layers fit into ACTIVATIONS_BOUND; a longer text goes alone."""
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
    engine: Engine,
    captures: Sequence[Capture],
    places: Places,
    layers: tuple[int, ...],
    axes: Float[Tensor, "place d_model"],
) -> list[TextReadout]:
    return [
        TextReadout(
            token_ids=capture.token_ids,
            tokens=tuple(engine.tokenizer.token_text(token) for token in capture.token_ids),
            readouts=tuple(
                _summary(name, layer, capture.activations[layers.index(layer)] @ axes[index])
                for index, (name, layer) in enumerate(places)
            ),
        )
        for capture in captures
    ]


def _summary(name: str, layer: int, scores: Float[Tensor, "token"]) -> LayerReadout:
    spoken = scores[1:] if len(scores) > 1 else scores
    return LayerReadout(
        name, layer, tuple(scores.tolist()), float(spoken.mean()), float(spoken.max()), float(scores[-1])
    )
