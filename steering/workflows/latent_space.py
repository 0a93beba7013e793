"""Maps texts in the residual stream to points, layer by layer, and groups them by their activations at one layer."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from steering.engine.api import CapturePrompt, CaptureSpec, Engine
from steering.errors import InvalidRequest
from steering.layer_indices import layer_indices
from steering.pairs import Text
from steering.projection import PROJECTIONS, Points
from steering.registry import unknown_name
from steering.schemas.latent_space import (
    ClusterAnswer,
    ClustersAnswer,
    ClustersRequest,
    ExampleText,
    LatentSpaceAnswer,
    LatentSpaceRequest,
    LayerMapAnswer,
    NearestVector,
    PairAnswer,
    PathAnswer,
    SegmentAnswer,
)
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, LayerDirection
from steering.workflows.generate import Progress, ignore_progress
from steering.workflows.readout import used_vectors
from steering.workflows.worker_process import cluster, draw, run_in_worker

Read: TypeAlias = NDArray[np.float32]
MIN_TEXTS_TO_WARN = 30
"""With fewer texts, holding a text out moves the mean of its class away from it, which alone pulls AUROC below chance."""
PATH_TEXTS = 64
"""Texts that span the picture in which a path through the layers is drawn."""
MAX_PAIRED = 32
"""Clusters whose pairs are compared with vectors; HDBSCAN may find more."""
EXAMPLE_CHARACTERS = 300


async def latent_space(
    engine: Engine,
    request: LatentSpaceRequest,
    texts: Sequence[Text],
    vectors: Mapping[str, ConceptVector],
    *,
    progress: Progress = ignore_progress,
) -> LatentSpaceAnswer:
    """Reads the texts of a request and returns maps by layer; warnings name layers that cannot be drawn. vectors: drawn
    where the projection is linear. Cancelling kills the worker process. Raises what `check_request` and
    `layer_indices` raise, and the projection's own error where no layer could be drawn."""
    check_request(request)
    layers = layer_indices(request.layers, engine.info.layer_count)
    total = len(texts) + len(layers) + request.embeddings
    captures = await engine.capture(
        [CapturePrompt(text) for text in texts],
        CaptureSpec(layers=layers, position=request.position, embeddings=request.embeddings),
        progress=lambda done, _: progress(done, total, "reading texts"),
    )
    read = torch.cat([capture.activations.float() for capture in captures], dim=1).numpy(force=True)
    maps: dict[int | None, LayerMapAnswer] = {}
    left_out: dict[int | None, InvalidRequest] = {}
    spaces: list[tuple[int | None, Read]] = list(zip(layers, read, strict=True))
    embeddings = [capture.embeddings for capture in captures if capture.embeddings is not None]
    if embeddings:  # before the first layer
        spaces.insert(0, (None, torch.cat(embeddings).numpy(force=True)))
    for done, (layer, activations) in enumerate(spaces, start=len(texts)):
        progress(done, total, f"drawing {_named(layer)}")
        try:
            maps[layer] = await _map(request, vectors, layer, activations)
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
        vectors=used_vectors(vectors),
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
    advice = "" if request.groups else "; give `groups` if texts come in pairs"
    return [f"labels are separated worse than chance at {', '.join(worse)}{advice}"] if worse else []


def _named(layer: int | None) -> str:
    return "the input embedding" if layer is None else f"layer {layer}"


def check_request(request: LatentSpaceRequest) -> None:
    """Raises InvalidRequest for an unknown method, labels or groups that are not one per text, and a path of no text."""
    if request.method not in PROJECTIONS:
        raise InvalidRequest(unknown_name("method", request.method, list(PROJECTIONS), "method"), param="method")
    for name, given in (("label", request.labels), ("group", request.groups)):
        if given is not None and len(given) != len(request.texts):
            raise InvalidRequest(
                f"one {name} per text is needed: got {len(given)} for {len(request.texts)}", param=f"{name}s"
            )
    if request.path is not None and request.path >= len(request.texts):
        raise InvalidRequest(f"path must be the index of a text, 0 to {len(request.texts) - 1}", param="path")


async def _map(
    request: LatentSpaceRequest, vectors: Mapping[str, ConceptVector], layer: int | None, activations: Read
) -> LayerMapAnswer:
    """Draws one layer, one point per text. layer None: the input embeddings, before the first block."""
    points, separability = await run_in_worker(
        draw, activations, request.method, request.dims, request.seed, request.labels, request.groups
    )
    segments = []
    if layer is not None and points.basis is not None:
        here = {name: vector.at(layer) for name, vector in vectors.items() if layer in vector.layers}
        segments = [segment(name, entry, points) for name, entry in here.items()]
    return LayerMapAnswer(
        layer=layer,
        points=points.points.tolist(),
        explained_variance=None if points.explained_variance is None else list(points.explained_variance),
        separability=separability,
        segments=segments,
    )


def segment(name: str, entry: LayerDirection, points: Points) -> SegmentAnswer:
    """basis (dims, d_model), direction (d_model,): half a natural scale either way from the middle of the points."""
    assert points.basis is not None, "the projection is linear"
    along = points.basis @ entry.direction.numpy(force=True)
    half = 0.5 * entry.scale * along
    return SegmentAnswer(vector=name, start=(-half).tolist(), end=half.tolist(), visible=float(np.linalg.norm(along)))


async def _path(read: Read, layers: tuple[int, ...], text: int, dims: int) -> PathAnswer:
    """Draws a text and the mean of all in one PCA of residuals scaled to length 1. read (layer, text, d_model)."""
    others = np.delete(np.arange(read.shape[1]), text)
    spread = np.linspace(0, len(others) - 1, min(len(others), PATH_TEXTS - 1)).round().astype(int)
    shown = _unit(read[:, [text, *others[spread]]]).reshape(-1, read.shape[2])
    points, _ = await run_in_worker(draw, shown, "pca", dims, 0)
    assert points.basis is not None, "the projection is linear"
    means = await run_in_thread(lambda: np.stack([_unit(layer).mean(axis=0) for layer in read]))  # (layer, d_model)
    return PathAnswer(
        layers=list(layers),
        text=points.points.reshape(len(layers), -1, dims)[:, 0].tolist(),
        mean=((means - shown.mean(axis=0)) @ points.basis.T).tolist(),
        explained_variance=list(points.explained_variance or ()),
    )


def _unit(rows: Read) -> Read:
    """Returns residuals (..., d_model) scaled to length 1."""
    unit: Read = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.float32(1e-12))
    return unit


async def clusters(
    engine: Engine, request: ClustersRequest, texts: Sequence[Text], layer: int, vectors: Sequence[ConceptVector]
) -> ClustersAnswer:
    """Reads the texts of a request and clusters them in a worker process, which cancelling kills. vectors: compared
    with differences of centres. Raises InvalidRequest, and what `Engine.capture` raises."""
    spec = CaptureSpec(layers=(layer,), position=request.position)
    captures = await engine.capture([CapturePrompt(text) for text in texts], spec, priority=0)
    rows = torch.cat([capture.activations[0].float() for capture in captures]).numpy(force=True)
    labels, centres, silhouette = await run_in_worker(
        cluster, rows, request.method, request.clusters, request.min_size, request.seed
    )
    warnings, listed = [], []
    if not len(centres):
        warnings.append("no cluster was found; try method 'kmeans', or a smaller min_size")
    if 0 < len(centres) < (request.clusters or 0):
        warnings.append(
            f"{len(centres)} clusters were found, not {request.clusters}: the model does not tell more texts apart there"
        )
    if len(centres) > MAX_PAIRED:
        warnings.append(f"{len(centres)} clusters were found; pairs are listed for the {MAX_PAIRED} largest")
    for index, centre in enumerate(centres):
        members = np.flatnonzero(labels == index)
        distances = np.linalg.norm(rows[members] - centre, axis=1)
        nearest = members[np.argsort(distances, kind="stable")][: request.examples].tolist()
        ends = [text if isinstance(text, str) else text[-1].content for text in (texts[place] for place in nearest)]
        examples = [
            ExampleText(index=place, text=text[:EXAMPLE_CHARACTERS]) for place, text in zip(nearest, ends, strict=True)
        ]
        listed.append(ClusterAnswer(index=index, size=len(members), examples=examples))
    return ClustersAnswer(
        model=engine.info.name,
        layer=layer,
        method=request.method,
        labels=labels.tolist(),
        silhouette=silhouette,
        clusters=listed,
        pairs=_pairs(centres[:MAX_PAIRED], layer, vectors),
        warnings=warnings,
    )


def _pairs(centres: NDArray[np.float64], layer: int, vectors: Sequence[ConceptVector]) -> list[PairAnswer]:
    """Finds, for each two clusters, the vector with the largest absolute cosine with their difference."""
    known = [vector for vector in vectors if layer in vector.layers]
    directions = np.array([vector.at(layer).direction.numpy(force=True) for vector in known], dtype=np.float64)
    pairs = []
    for first, second in combinations(range(len(centres)), 2):
        difference = centres[second] - centres[first]
        distance, nearest = float(np.linalg.norm(difference)), None
        if known and distance > 0.0:
            cosines = directions @ difference / distance
            best = int(np.argmax(np.abs(cosines)))
            nearest = NearestVector(vector=known[best].id, cosine=float(cosines[best]))
        pairs.append(PairAnswer(clusters=(first, second), distance=distance, nearest=nearest))
    return pairs
