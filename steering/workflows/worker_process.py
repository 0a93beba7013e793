"""Runs work in a worker process next to the server: at a low priority, with one thread. The work itself, a projection or a
clustering of activations, is here too. Imports no torch, so that a worker starts within a second."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import numpy as np
from anyio import to_process
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from steering.errors import InvalidRequest, NonfiniteActivations
from steering.projection import PROJECTIONS, Points
from steering.projection.base import Separability

T = TypeVar("T")
P = ParamSpec("P")
NICENESS = 10
AXES = 50
"""Principal axes kept before clustering: distances in fewer dimensions, with less noise, and fifty times less to compute."""
MOST_CHOSEN = 10
"""Largest number of clusters that is chosen by silhouette."""
MIN_TEXTS = 4


async def run_in_worker(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Runs work in a worker process and returns its result; cancelling kills the worker at once."""
    return await to_process.run_sync(_run, work, arguments, named, cancellable=True)


def _run(work: Callable[..., T], arguments: tuple[Any, ...], named: dict[str, Any]) -> T:
    """Gives the server and its model precedence: one thread, and a lower priority where the system supports it."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS))
    os.environ["OMP_NUM_THREADS"] = "1"  # for libraries that are loaded later
    with threadpool_limits(limits=1):
        return work(*arguments, **named)


def draw(
    activations: NDArray[np.float32],
    method: str,
    dims: int,
    seed: int,
    labels: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> tuple[Points, Separability | None]:
    """activations (example, d_model) -> the projection, and the separability in the full space; None without two labels.

    Raises InvalidRequest where they cannot be drawn.
    """
    points = PROJECTIONS[method].fit(activations, dims, seed)
    if labels is None or len(set(labels)) < 2:
        return points, None
    # scikit-learn takes a second to import, in the worker only
    from steering.projection.separability import separability  # noqa: PLC0415

    return points, separability(activations, labels, seed, groups)


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """labels (text,): cluster of each text, -1 for none; clusters are numbered by size. centres (cluster, d_model): means in
    the full space. silhouette: None with fewer than two clusters."""

    labels: NDArray[np.intp]
    centres: NDArray[np.float64]
    silhouette: float | None


def cluster(
    activations: NDArray[np.float32], method: str, clusters: int | None, min_size: int | None, seed: int
) -> Clustering:
    """activations (text, d_model). Raises InvalidRequest where they cannot be clustered."""
    _check(activations, clusters)
    from sklearn.decomposition import PCA  # noqa: PLC0415 - see `draw`

    rows = activations.astype(np.float64)
    axes = PCA(n_components=min(AXES, *rows.shape), svd_solver="full").fit_transform(rows)
    labels = _by_size(_hdbscan(axes, min_size) if method == "hdbscan" else _kmeans(axes, clusters, seed))
    count = int(labels.max()) + 1
    centres = np.array([rows[labels == index].mean(axis=0) for index in range(count)]).reshape(count, rows.shape[1])
    return Clustering(labels, centres, _silhouette(axes, labels))


def _check(activations: NDArray[np.float32], clusters: int | None) -> None:
    if len(activations) < max(MIN_TEXTS, (clusters or 0) + 1):
        raise InvalidRequest(
            f"{len(activations)} texts are too few: expected at least {MIN_TEXTS}, and more than clusters",
            param="texts",
        )
    if not np.isfinite(activations).all():
        raise NonfiniteActivations("the activations contain NaN or infinity, so they cannot be clustered")
    if (activations == activations[0]).all():
        raise InvalidRequest("the activations are all alike at this layer", param="texts")


def _kmeans(rows: NDArray[np.float64], clusters: int | None, seed: int) -> NDArray[np.intp]:
    """k-means with ten starts (Lloyd); the number of clusters with the best silhouette where none is given."""
    from sklearn.cluster import KMeans  # noqa: PLC0415 - see `draw`

    distinct = len(np.unique(rows, axis=0))
    numbers = [clusters] if clusters is not None else range(2, min(MOST_CHOSEN, len(rows) - 1) + 1)
    found = [
        KMeans(n_clusters=min(count, distinct), n_init=10, random_state=seed).fit_predict(rows) for count in numbers
    ]
    return np.asarray(max(found, key=lambda labels: _silhouette(rows, labels) or -1.0), dtype=np.intp)


def _hdbscan(rows: NDArray[np.float64], min_size: int | None) -> NDArray[np.intp]:
    """HDBSCAN (Campello, Moulavi, Sander 2013). By default a cluster has a twentieth of the texts, and at least three."""
    from sklearn.cluster import HDBSCAN  # noqa: PLC0415 - see `draw`

    size = min(min_size or max(3, len(rows) // 20), len(rows))
    return np.asarray(HDBSCAN(min_cluster_size=size, copy=True).fit_predict(rows), dtype=np.intp)


def _by_size(labels: NDArray[np.intp]) -> NDArray[np.intp]:
    """Numbers the clusters from the largest to the smallest; equal sizes by their first text."""
    names = sorted(set(labels[labels >= 0].tolist()), key=lambda name: (-int((labels == name).sum()), int(np.argmax(labels == name))))  # fmt: skip
    order = {name: index for index, name in enumerate(names)}
    return np.array([order.get(int(label), -1) for label in labels], dtype=np.intp)


def _silhouette(rows: NDArray[np.float64], labels: NDArray[np.intp]) -> float | None:
    from sklearn.metrics import silhouette_score  # noqa: PLC0415 - see `draw`

    inside = labels >= 0
    count = len(set(labels[inside].tolist()))
    if not 2 <= count < int(inside.sum()):
        return None
    return float(silhouette_score(rows[inside], labels[inside]))
