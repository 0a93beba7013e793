"""Runs work in a worker process next to the server: at a low priority, with one thread. The work itself, a projection
or a clustering of activations, is here too. Imports no torch, so that a worker starts within a second."""

import os
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
from anyio import BrokenWorkerProcess, to_process
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from steering.errors import InvalidRequest, NonfiniteActivations, OutOfMemory
from steering.projection import PROJECTIONS, Points
from steering.schemas.latent_space import SeparabilityAnswer

T = TypeVar("T")
P = ParamSpec("P")
NICENESS = 10
MOST_CHOSEN = 10
"""Largest number of clusters that is chosen by silhouette."""
MIN_TEXTS = 4


async def run_in_worker(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Runs work in a worker process and returns its result; cancelling kills the worker at once. Raises what the work raises, and
    OutOfMemory where its memory does not suffice or the system killed the worker."""
    try:
        return await to_process.run_sync(_run, work, arguments, named, cancellable=True)
    except (BrokenWorkerProcess, MemoryError) as error:
        ended = "needs too much memory" if isinstance(error, MemoryError) else "was killed, as where memory is short"
        raise OutOfMemory(f"the process that computes this {ended}; send fewer texts") from error


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
) -> tuple[Points, SeparabilityAnswer | None]:
    """Projects activations (example, d_model); their separability is None without two labels. Raises InvalidRequest."""
    points = PROJECTIONS[method].fit(activations, dims, seed)
    if labels is None or len(set(labels)) < 2:
        return points, None
    # scikit-learn takes a second to import, in the worker only
    from steering.projection.scikit_learn import separability  # noqa: PLC0415

    return points, separability(activations, labels, seed, groups)


def cluster(
    activations: NDArray[np.float32], method: str, clusters: int | None, min_size: int | None, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.float64], float | None]:
    """Clusters activations (text, d_model) by principal axes: kmeans, by default with the best silhouette, or hdbscan
    (Campello, Moulavi, Sander 2013), by default with a twentieth of the texts, at least three. Raises
    InvalidRequest. Returns the cluster of each text, -1 for none, numbered by size; their means (cluster, d_model);
    the silhouette, if there are two."""
    from sklearn.cluster import HDBSCAN, KMeans  # noqa: PLC0415 - see `draw`

    from steering.projection.scikit_learn import principal_axes  # noqa: PLC0415

    count = len(activations)
    if count < max(MIN_TEXTS, (clusters or 0) + 1):
        raise InvalidRequest(
            f"{count} texts are too few: expected at least {MIN_TEXTS}, and more than clusters", param="texts"
        )
    if not np.isfinite(activations).all():
        raise NonfiniteActivations("the activations contain NaN or infinity, so they cannot be clustered")
    if (activations == activations[0]).all():
        raise InvalidRequest("the activations are all alike at this layer", param="texts")
    rows, axes = activations.astype(np.float64), principal_axes(activations)
    if method == "hdbscan":
        size = min(min_size or max(3, count // 20), count)
        labels = _by_size(HDBSCAN(min_cluster_size=size, copy=True).fit_predict(axes))
    else:
        numbers = [clusters] if clusters is not None else range(2, min(MOST_CHOSEN, count - 1) + 1)
        most = len(np.unique(activations, axis=0))
        models = [KMeans(n_clusters=min(number, most), n_init=10, random_state=seed) for number in numbers]
        found = [model.fit_predict(axes) for model in models]
        labels = _by_size(max(found, key=lambda labels: _silhouette(axes, labels) or -1.0))
    centres = [rows[labels == index].mean(axis=0) for index in range(int(labels.max()) + 1)]
    return labels, np.array(centres).reshape(-1, rows.shape[1]), _silhouette(axes, labels)


def _by_size(labels: NDArray[Any]) -> NDArray[np.intp]:
    """Numbers the clusters from the largest to the smallest; equal sizes by their first text."""
    names, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    ordered = [name for name in names[np.lexsort((first, -sizes))].tolist() if name >= 0]
    order = {name: index for index, name in enumerate(ordered)}
    return np.array([order.get(int(label), -1) for label in labels], dtype=np.intp)


def _silhouette(rows: NDArray[np.float64], labels: NDArray[np.intp]) -> float | None:
    from sklearn.metrics import silhouette_score  # noqa: PLC0415 - see `draw`

    inside = labels >= 0
    count = len(set(labels[inside].tolist()))
    if not 2 <= count < int(inside.sum()):
        return None
    return float(silhouette_score(rows[inside], labels[inside]))
