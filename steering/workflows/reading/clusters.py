"""Groups texts by their activations at one layer, and compares the differences of the groups with known vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch

from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Position, Prompt
from steering.vectors import ConceptVector
from steering.workflows.reading.cluster_process import Clustering, cluster
from steering.workflows.reading.worker_process import run_in_worker

MAX_PAIRED = 32
"""Clusters whose pairs are compared with vectors; HDBSCAN may find more."""


@dataclass(frozen=True, slots=True, eq=False)
class ClustersRequest:
    """See ClustersRequest in steering/schemas/reading/clusters.py. vectors: those compared with differences of centres."""

    texts: tuple[Prompt, ...]
    layer: int
    vectors: tuple[ConceptVector, ...] = ()
    method: str = "kmeans"
    clusters: int | None = None
    min_size: int | None = None
    position: Position = "mean"
    examples: int = 5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """examples: indices of the texts nearest to the centre."""

    size: int
    examples: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClusterPair:
    """vector: the one with the largest absolute cosine with the difference from `first` to `second`; None without vectors."""

    first: int
    second: int
    distance: float
    vector: str | None = None
    cosine: float = 0.0


@dataclass(frozen=True, slots=True)
class Clusters:
    """labels: per text, -1 for none. Clusters from the largest to the smallest."""

    labels: tuple[int, ...]
    silhouette: float | None
    clusters: tuple[Cluster, ...]
    pairs: tuple[ClusterPair, ...]
    warnings: tuple[str, ...] = ()


async def clusters(engine: Engine, request: ClustersRequest, *, priority: int = 0) -> Clusters:
    """Reads the texts and clusters them in a worker process; cancelling kills the worker at once.

    Raises InvalidRequest for texts that are too few or all alike, and what `Engine.capture` raises.
    """
    captures = await engine.capture(
        [CapturePrompt(text) for text in request.texts],
        CaptureSpec(layers=(request.layer,), position=request.position),
        priority=priority,
    )
    rows = torch.cat([capture.activations[0].float() for capture in captures]).numpy(force=True)
    found = await run_in_worker(cluster, rows, request.method, request.clusters, request.min_size, request.seed)
    warnings = []
    if not len(found.centres):
        warnings.append("no cluster was found; try method 'kmeans', or a smaller min_size")
    if len(found.centres) > MAX_PAIRED:
        warnings.append(f"{len(found.centres)} clusters were found; pairs are listed for the {MAX_PAIRED} largest")
    return Clusters(
        labels=tuple(found.labels.tolist()),
        silhouette=found.silhouette,
        clusters=tuple(_members(found, rows, index, request.examples) for index in range(len(found.centres))),
        pairs=_pairs(found.centres[:MAX_PAIRED], request.layer, request.vectors),
        warnings=tuple(warnings),
    )


def _members(found: Clustering, rows: "np.typing.NDArray[np.float32]", index: int, examples: int) -> Cluster:
    members = np.flatnonzero(found.labels == index)
    distances = np.linalg.norm(rows[members] - found.centres[index], axis=1)
    nearest = members[np.argsort(distances, kind="stable")][:examples]
    return Cluster(len(members), tuple(nearest.tolist()))


def _pairs(
    centres: "np.typing.NDArray[np.float64]", layer: int, vectors: Sequence[ConceptVector]
) -> tuple[ClusterPair, ...]:
    known = [vector for vector in vectors if layer in vector.layers]
    directions = np.array([vector.at(layer).direction.numpy(force=True) for vector in known], dtype=np.float64)
    pairs = []
    for first, second in combinations(range(len(centres)), 2):
        difference = centres[second] - centres[first]
        distance = float(np.linalg.norm(difference))
        if not known or distance == 0.0:
            pairs.append(ClusterPair(first, second, distance))
            continue
        cosines = directions @ difference / distance
        best = int(np.argmax(np.abs(cosines)))
        pairs.append(ClusterPair(first, second, distance, known[best].id, float(cosines[best])))
    return tuple(pairs)
