"""Maps texts in the model's residual stream to points, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Position, Prompt
from steering.errors import InvalidRequest
from steering.layer_indices import layer_indices
from steering.plan.layers import check_model
from steering.projection import PROJECTIONS, Points
from steering.projection.base import Separability
from steering.registry import unknown_name
from steering.vectors import ConceptVector, LayerDirection
from steering.workflows.progress import Progress, ignore_progress
from steering.workflows.reading.projection_process import Drawing, draw
from steering.workflows.reading.worker_process import run_in_worker

Point: TypeAlias = tuple[float, ...]
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


@dataclass(frozen=True, slots=True)
class Segment:
    """A vector in the picture: from its negative to its positive pole, one natural scale long, through the middle of the
    points. visible: share of its length that lies in the picture; near 0 it points out of the page."""

    vector: str
    start: Point
    end: Point
    visible: float


@dataclass(frozen=True, slots=True)
class LayerMap:
    """One layer: a point a text. explained_variance: share of all variance by axis, for a linear projection. layer None:
    the input embeddings, before the first block."""

    layer: int | None
    points: tuple[Point, ...]
    explained_variance: tuple[float, ...] | None
    separability: Separability | None
    segments: tuple[Segment, ...] = ()


@dataclass(frozen=True, slots=True)
class Path:
    """One text from layer to layer, and the mean of all texts, in one PCA of residuals scaled to length 1:
    what turns on the way, without the growth in length that every text shares."""

    layers: tuple[int, ...]
    text: tuple[Point, ...]
    mean: tuple[Point, ...]
    explained_variance: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LatentSpace:
    """Maps by layer, in ascending order; a layer that could not be drawn is named in the warnings instead, and so are
    input embeddings: texts that end in one word have one embedding there."""

    method: str
    layers: tuple[LayerMap, ...]
    path: Path | None
    warnings: tuple[str, ...] = ()
    embedding: LayerMap | None = None


async def latent_space(engine: Engine, request: LatentSpaceRequest, *, progress: Progress | None = None) -> LatentSpace:
    """The projections run in a worker process, one layer at a time; cancelling kills the worker at once.

    Raises InvalidRequest for texts, labels, layers, a method or dims that cannot be, and the projection's own error
    where no layer could be drawn.
    """
    report = progress or ignore_progress
    check_request(engine, request)
    layers = layer_indices(request.layers, engine.info.layer_count)
    total = len(request.texts) + len(layers) + request.embeddings
    captures = await engine.capture(
        [CapturePrompt(text) for text in request.texts],
        CaptureSpec(layers=layers, position=request.position, embeddings=request.embeddings),
        progress=lambda done, _: report(done, total, "reading texts"),
    )
    read = torch.cat([capture.activations.float() for capture in captures], dim=1).numpy(force=True)
    maps: dict[int | None, LayerMap] = {}
    left_out: dict[int | None, InvalidRequest] = {}
    for done, (layer, activations) in enumerate(_spaces(captures, layers, read), start=len(request.texts)):
        report(done, total, f"drawing {_named(layer)}")
        try:
            drawing = await _drawn(
                activations, request.method, request.dims, request.seed, request.labels, request.groups
            )
            maps[layer] = _map(request, layer, drawing)
        except InvalidRequest as error:
            left_out[layer] = error
    if not set(maps) - {None}:
        raise left_out[layers[0]]
    path = None if request.path is None else await _path(read, layers, request.path, request.dims)
    report(total, total, "done")
    warnings = [f"{_named(layer)} is left out: {error.message}" for layer, error in left_out.items()]
    warnings += _about_separability(request, maps)
    embedding = maps.pop(None, None)
    return LatentSpace(request.method, tuple(maps.values()), path, tuple(warnings), embedding)


def _about_separability(request: LatentSpaceRequest, maps: Mapping[int | None, LayerMap]) -> list[str]:
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
    if request.labels is not None and len(request.labels) != len(request.texts):
        raise InvalidRequest(
            f"one label per text is needed: got {len(request.labels)} for {len(request.texts)}", param="labels"
        )
    if request.groups is not None and len(request.groups) != len(request.texts):
        raise InvalidRequest(
            f"one group per text is needed: got {len(request.groups)} for {len(request.texts)}", param="groups"
        )
    if request.position == "all":
        raise InvalidRequest(
            "position 'all' gives many activations a text; a map has one point a text", param="position"
        )
    if request.path is not None and not 0 <= request.path < len(request.texts):
        raise InvalidRequest(f"path must be the index of a text, 0 to {len(request.texts) - 1}", param="path")
    for vector in (request.vectors or {}).values():
        check_model(vector, engine.info)


async def _drawn(
    activations: Read,
    method: str,
    dims: int,
    seed: int,
    labels: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> Drawing:
    return await run_in_worker(draw, activations, method, dims, seed, labels, groups)


def _map(request: LatentSpaceRequest, layer: int | None, drawing: Drawing) -> LayerMap:
    found = {
        name: vector.layers.get(-1 if layer is None else layer) for name, vector in (request.vectors or {}).items()
    }
    here = {name: entry for name, entry in found.items() if entry is not None}
    segments = tuple(segment(name, entry, drawing.points) for name, entry in here.items())
    return LayerMap(
        layer=layer,
        points=_points(drawing.points.points),
        explained_variance=drawing.points.explained_variance,
        separability=drawing.separability,
        segments=segments if drawing.points.basis is not None else (),
    )


def segment(name: str, entry: LayerDirection, points: Points) -> Segment:
    """basis (dims, d_model), direction (d_model,): half a natural scale either way from the middle of the points."""
    if points.basis is None:
        return Segment(name, (), (), 0.0)
    along = points.basis @ entry.direction.numpy(force=True)
    half = 0.5 * entry.scale * along
    return Segment(name, _point(-half), _point(half), float(np.linalg.norm(along)))


async def _path(read: Read, layers: tuple[int, ...], text: int, dims: int) -> Path:
    """read (layer, text, d_model)."""
    others = [index for index in range(read.shape[1]) if index != text][: PATH_TEXTS - 1]
    shown = read[:, [text, *others]]
    unit = shown / np.maximum(np.linalg.norm(shown, axis=2, keepdims=True), 1e-12)
    drawing = await _drawn(unit.reshape(-1, read.shape[2]), "pca", dims, 0)
    places = drawing.points.points.reshape(len(layers), -1, dims)
    return Path(
        layers=layers,
        text=_points(places[:, 0]),
        mean=_points(places.mean(axis=1)),
        explained_variance=drawing.points.explained_variance or (),
    )


def _points(values: Read) -> tuple[Point, ...]:
    return tuple(_point(row) for row in values)


def _point(row: Read) -> Point:
    return tuple(float(value) for value in row)
