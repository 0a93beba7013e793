"""Measures how well labelled activations separate in the full space, before any projection."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from steering.auroc import HeldOut, Numbers, jackknife_interval, leave_one_group_out
from steering.cards import Estimate
from steering.errors import InvalidRequest
from steering.projection.base import Separability

MAX_FOLDS = 5


def separability(
    activations: NDArray[np.float32], labels: Sequence[str], seed: int = 0, groups: Sequence[str] | None = None
) -> Separability:
    """activations (example, d_model), one label each -> Separability. groups: examples that stay in one fold, such as the
    two texts of a pair; None: every example by itself. Raises InvalidRequest below two labels."""
    if len(labels) != len(activations):
        raise InvalidRequest(f"one label per text is needed: got {len(labels)} for {len(activations)}", param="labels")
    if groups is not None and len(groups) != len(activations):
        raise InvalidRequest(f"one group per text is needed: got {len(groups)} for {len(activations)}", param="groups")
    names, codes, counts = np.unique(np.asarray(labels, dtype=str), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InvalidRequest("separability needs at least two different labels", param="labels")
    rows = activations.astype(np.float64)
    silhouette = float(silhouette_score(rows, codes)) if len(names) < len(rows) else None
    members = np.arange(len(rows))
    if groups is not None:
        members = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    found = _held_out_auroc(rows, codes, members, int(counts.min()), seed)
    return Separability(None, silhouette) if found is None else Separability(found.mean, silhouette, found.interval)


def _held_out_auroc(
    rows: Numbers, codes: NDArray[np.intp], groups: NDArray[np.intp], smallest: int, seed: int
) -> Estimate | None:
    """Estimates the AUROC of a linear classifier on groups it was not fitted on; the mean of one against the rest for more
    than two labels. None where a label has fewer than two examples, or every fold lacks a label.

    Comparisons are made within a fold: pooled scores of different classifiers pull chance below 0.5.
    """
    grouped = len(np.unique(groups)) < len(rows)
    count = min(MAX_FOLDS, len(np.unique(groups)), smallest)
    if count < 2:
        return None
    kind = (StratifiedGroupKFold if grouped else StratifiedKFold)(count, shuffle=True, random_state=seed)
    # The penalty grows with d_model, so that it means the same for every model: |x|^2 ~ d_model once standardised.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0 / rows.shape[1], tol=1e-4, max_iter=1000))
    classes = int(codes.max()) + 1
    parts: list[list[HeldOut]] = [[] for _ in range(1 if classes == 2 else classes)]
    for fitted, held in kind.split(rows, codes, groups if grouped else None):
        if len(np.unique(codes[fitted])) < classes:
            continue
        scores = model.fit(rows[fitted], codes[fitted]).decision_function(rows[held]).reshape(len(held), -1)
        for number, folds in enumerate(parts):
            inside = codes[held] == (1 if classes == 2 else number)
            if inside.any() and not inside.all():
                own = scores[:, number]
                folds.append(HeldOut(own[inside], own[~inside], groups[held][inside], groups[held][~inside]))
    measured = [leave_one_group_out(folds, np.unique(groups)) for folds in parts if folds]
    if not measured:
        return None
    return jackknife_interval(
        float(np.mean([value for value, _ in measured])), np.mean([without for _, without in measured], axis=0)
    )
