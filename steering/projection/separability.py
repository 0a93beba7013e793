"""How well labelled points stand apart: a cross-validated linear reading and the silhouette. Pure numbers, no drawing."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from steering.errors import InvalidRequest
from steering.projection.base import Separability

FOLDS = 5


def separability(activations: NDArray[np.float32], labels: Sequence[str], seed: int = 0) -> Separability:
    """activations (example, d_model) and one label each -> Separability. Raises InvalidRequest below two labels."""
    if len(labels) != len(activations):
        raise InvalidRequest(f"one label for each text: got {len(labels)} for {len(activations)}", param="labels")
    names, codes, counts = np.unique(np.asarray(labels, dtype=str), return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise InvalidRequest("separability needs at least two different labels", param="labels")
    rows = activations.astype(np.float64)
    silhouette = float(silhouette_score(rows, codes)) if len(names) < len(rows) else None
    folds = min(FOLDS, int(counts.min()))
    return Separability(_held_out_auroc(rows, codes, folds, seed) if folds >= 2 else None, silhouette)


def _held_out_auroc(rows: NDArray[np.float64], codes: NDArray[np.intp], folds: int, seed: int) -> float:
    """Mean over folds (and labels) of the AUROC among examples that the classifier had not seen.

    Fold by fold: scores of different folds come from different classifiers, and pooling them pulls chance below 0.5.
    """
    # The penalty grows with d_model, so that it means the same for any model: |x|^2 ~ d_model once standardised.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0 / rows.shape[1], tol=1e-4, max_iter=1000))
    parts = StratifiedKFold(folds, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(model, rows, codes, cv=parts, scoring="roc_auc_ovr")))
