"""Maps texts in the model's residual stream to points, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Position, Prompt
from steering.errors import InvalidRequest
from steering.layer_indices import layer_indices
from steering.plan.layers import check_model
from steering.projection import PROJECTIONS, Points
from steering.registry import unknown_name
from steering.schemas.latent_space import (
    LatentSpaceAnswer,
    LayerMapAnswer,
    PathAnswer,
    SegmentAnswer,
    SeparabilityAnswer,
)
from steering.vectors import ConceptVector, LayerDirection
from steering.workflows.progress import Progress, ignore_progress
from steering.workflows.reading.readout import used_vectors
from steering.workflows.reading.worker_process import draw, run_in_worker

Read: TypeAlias = NDArray[np.float32]
MIN_TEXTS_TO_WARN = 30
"""With fewer texts, holding a text out moves the mean of its class away from it, which alone pulls AUROC below chance."""
PATH_TEXTS = 64
"""Texts that span the picture in which a path through the layers is drawn."""


@dataclass(frozen=True, slots=True, eq=False)
class LatentSpaceRequest:
    """texts, with a label each if wanted. groups: texts that belong together, such as the two texts of a pair; they stay in one
    fold where separability is measured. vectors: drawn where the projection is linear, by the name given. path: the
    index of a text to follow through the layers. position: which activation stands for a text. embeddings: also draw the
    input embeddings of the same positions, so that what the layers added can be seen."""

    texts: tuple[Prompt, ...]
    labels: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    layers: Literal["all"] | tuple[int, ...] = "all"
    method: str = "pca"
    dims: int = 2
    position: Position = "last"
    vectors: Mapping[str, ConceptVector] | None = None
    path: int | None = None
    seed: int = 0
    embeddings: bool = False


async def latent_space(
    engine: Engine, request: LatentSpaceRequest, *, progress: Progress = ignore_progress
) -> LatentSpaceAnswer:
    """Returns maps by layer, in ascending order. A layer that cannot be drawn is named in the warnings instead, and so are input
    embeddings: texts that end in one word have one embedding there.

    The projections run in a worker process, one layer at a time; cancelling kills the worker at once. Raises InvalidRequest
    for texts, labels, layers, a method or dims that cannot be, and the projection's own error where no layer could be drawn.
    """
    check_request(engine, request)
    layers = layer_indices(request.layers, engine.info.layer_count)
    total = len(request.texts) + len(layers) + request.embeddings
    captures = await engine.capture(
        [CapturePrompt(text) for text in request.texts],
        CaptureSpec(layers=layers, position=request.position, embeddings=request.embeddings),
        progress=lambda done, _: progress(done, total, "reading texts"),
    )
    read = torch.cat([capture.activations.float() for capture in captures], dim=1).numpy(force=True)
    maps: dict[int | None, LayerMapAnswer] = {}
    left_out: dict[int | None, InvalidRequest] = {}
    for done, (layer, activations) in enumerate(_spaces(captures, layers, read), start=len(request.texts)):
        progress(done, total, f"drawing {_named(layer)}")
        try:
            maps[layer] = await _map(request, layer, activations)
        except InvalidRequest as error:
            left_out[layer] = error
    if not set(maps) - {None}:
        raise left_out[layers[0]]
    path = None if request.path is None else await _path(read, layers, request.path, request.dims)
    progress(total, total, "done")
    warnings = [f"{_named(layer)} is left out: {error.message}" for layer, error in left_out.items()]
    warnings += _about_separability(request, maps)
    embedding = maps.pop(None, None)
    return LatentSpaceAnswer(
        model=engine.info.name,
        method=request.method,
        vectors=used_vectors(request.vectors or {}),
        layers=list(maps.values()),
        embedding=embedding,
        path=path,
        warnings=warnings,
    )


def _about_separability(request: LatentSpaceRequest, maps: Mapping[int | None, LayerMapAnswer]) -> list[str]:
    """Warns where held-out labels are predicted worse than chance: texts with opposite labels were split over folds."""
    if len(request.texts) < MIN_TEXTS_TO_WARN:
        return []
    worse = [
        f"{_named(layer)} ({found.auroc:.2f})"
        for layer, one in maps.items()
        if (found := one.separability) and found.auroc is not None and found.auroc_interval
        if found.auroc_interval[1] < 0.5
    ]
    if not worse:
        return []
    advice = "" if request.groups else "; give `groups` if texts come in pairs"
    return [f"labels are separated worse than chance at {', '.join(worse)}{advice}"]


def _spaces(captures: Sequence[Capture], layers: tuple[int, ...], read: Read) -> Iterator[tuple[int | None, Read]]:
    """(layer, activations (text, d_model)) of all that is drawn; the input embeddings, where they were read, have none."""
    embeddings = [capture.embeddings for capture in captures if capture.embeddings is not None]
    if embeddings:
        yield None, torch.cat(embeddings).numpy(force=True)
    yield from zip(layers, read, strict=True)


def _named(layer: int | None) -> str:
    return "the input embedding" if layer is None else f"layer {layer}"


def check_request(engine: Engine, request: LatentSpaceRequest) -> None:
    """Raises InvalidRequest and VectorModelMismatch for everything that can be checked before a text is read."""
    if request.method not in PROJECTIONS:
        raise InvalidRequest(unknown_name("method", request.method, list(PROJECTIONS), "method"), param="method")
    if request.dims not in (2, 3):
        raise InvalidRequest(f"dims must be 2 or 3, got {request.dims}", param="dims")
    if not request.texts:
        raise InvalidRequest("a map needs texts", param="texts")
    for name, given in (("label", request.labels), ("group", request.groups)):
        if given is not None and len(given) != len(request.texts):
            raise InvalidRequest(
                f"one {name} per text is needed: got {len(given)} for {len(request.texts)}", param=f"{name}s"
            )
    if request.position == "all":
        raise InvalidRequest(
            "position 'all' gives many activations a text; a map has one point a text", param="position"
        )
    if request.path is not None and not 0 <= request.path < len(request.texts):
        raise InvalidRequest(f"path must be the index of a text, 0 to {len(request.texts) - 1}", param="path")
    for vector in (request.vectors or {}).values():
        check_model(vector, engine.info)


async def _map(request: LatentSpaceRequest, layer: int | None, activations: Read) -> LayerMapAnswer:
    """Draws one layer, one point per text. layer None: the input embeddings, before the first block."""
    points, separability = await run_in_worker(
        draw, activations, request.method, request.dims, request.seed, request.labels, request.groups
    )
    here = {name: vector.layers.get(-1 if layer is None else layer) for name, vector in (request.vectors or {}).items()}
    drawn = {} if points.basis is None else here
    return LayerMapAnswer(
        layer=layer,
        points=points.points.tolist(),
        explained_variance=None if points.explained_variance is None else list(points.explained_variance),
        separability=None if separability is None else SeparabilityAnswer(**asdict(separability)),
        segments=[segment(name, entry, points) for name, entry in drawn.items() if entry is not None],
    )


def segment(name: str, entry: LayerDirection, points: Points) -> SegmentAnswer:
    """basis (dims, d_model), direction (d_model,): half a natural scale either way from the middle of the points."""
    assert points.basis is not None, "the projection is linear"
    along = points.basis @ entry.direction.numpy(force=True)
    half = 0.5 * entry.scale * along
    return SegmentAnswer(vector=name, start=(-half).tolist(), end=half.tolist(), visible=float(np.linalg.norm(along)))


async def _path(read: Read, layers: tuple[int, ...], text: int, dims: int) -> PathAnswer:
    """Draws a text, and the mean of all, in one PCA of residuals scaled to length 1: what turns on the way, without the growth
    in length that every text shares. read (layer, text, d_model)."""
    others = [index for index in range(read.shape[1]) if index != text][: PATH_TEXTS - 1]
    shown = read[:, [text, *others]]
    unit = shown / np.maximum(np.linalg.norm(shown, axis=2, keepdims=True), 1e-12)
    points, _ = await run_in_worker(draw, unit.reshape(-1, read.shape[2]), "pca", dims, 0)
    places = points.points.reshape(len(layers), -1, dims)
    return PathAnswer(
        layers=list(layers),
        text=places[:, 0].tolist(),
        mean=places.mean(axis=1).tolist(),
        explained_variance=list(points.explained_variance or ()),
    )
