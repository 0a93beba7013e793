"""Groups texts by their activations at one layer, and compares the differences of the groups with known vectors."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from steering.engine.api import CapturePrompt, CaptureSpec, Engine
from steering.pairs import Text
from steering.schemas.latent_space import (
    ClusterAnswer,
    ClustersAnswer,
    ClustersRequest,
    ExampleText,
    NearestVector,
    PairAnswer,
)
from steering.vectors import ConceptVector
from steering.workflows.worker_process import cluster, run_in_worker

MAX_PAIRED = 32
"""Clusters whose pairs are compared with vectors; HDBSCAN may find more."""
EXAMPLE_CHARACTERS = 300


async def clusters(
    engine: Engine, request: ClustersRequest, texts: Sequence[Text], layer: int, vectors: Sequence[ConceptVector]
) -> ClustersAnswer:
    """Reads the texts of a request and clusters them in a worker process; cancelling kills the worker at once.

    vectors: those compared with differences of centres. Raises InvalidRequest for texts that are too few or all alike, and
    what `Engine.capture` raises.
    """
    spec = CaptureSpec(layers=(layer,), position=request.position)
    captures = await engine.capture([CapturePrompt(text) for text in texts], spec, priority=0)
    rows = torch.cat([capture.activations[0].float() for capture in captures]).numpy(force=True)
    found = await run_in_worker(cluster, rows, request.method, request.clusters, request.min_size, request.seed)
    warnings = []
    if not len(found.centres):
        warnings.append("no cluster was found; try method 'kmeans', or a smaller min_size")
    if len(found.centres) > MAX_PAIRED:
        warnings.append(f"{len(found.centres)} clusters were found; pairs are listed for the {MAX_PAIRED} largest")
    listed = []
    for index, centre in enumerate(found.centres):
        members = np.flatnonzero(found.labels == index)
        distances = np.linalg.norm(rows[members] - centre, axis=1)
        nearest = members[np.argsort(distances, kind="stable")][: request.examples].tolist()
        examples = [ExampleText(index=place, text=_beginning(texts[place])) for place in nearest]
        listed.append(ClusterAnswer(index=index, size=len(members), examples=examples))
    return ClustersAnswer(
        model=engine.info.name,
        layer=layer,
        method=request.method,
        labels=found.labels.tolist(),
        silhouette=found.silhouette,
        clusters=listed,
        pairs=_pairs(found.centres[:MAX_PAIRED], layer, vectors),
        warnings=warnings,
    )


def _beginning(text: Text) -> str:
    return (text if isinstance(text, str) else text[-1].content)[:EXAMPLE_CHARACTERS]


def _pairs(centres: NDArray[np.float64], layer: int, vectors: Sequence[ConceptVector]) -> list[PairAnswer]:
    """Finds, for each two clusters, the vector with the largest absolute cosine with the difference of their centres."""
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
