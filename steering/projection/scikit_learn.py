"""Projects activations with scikit-learn, by principal axes or t-SNE, and measures how well labels separate."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from steering.auroc import HeldOut, Numbers, jackknife_interval, leave_one_group_out
from steering.cards import Estimate
from steering.projection import Points, check_activations
from steering.schemas.latent_space import SeparabilityAnswer

PERPLEXITY = 30.0
AXES = 50
"""Principal axes kept before t-SNE and clustering, as van der Maaten and Hinton (2008) do: less noise and work."""
MAX_FOLDS = 5


def principal_axes(activations: NDArray[np.float32]) -> Numbers:
    """activations (example, d_model) -> their coordinates on the first principal axes (example, axis)."""
    axes: Numbers = PCA(min(AXES, *activations.shape), svd_solver="full").fit_transform(activations.astype(np.float64))
    return axes


class Pca:
    """points = (X - mean) basis^T, basis (dims, d_model) the first principal axes, each with the sign that makes its
    largest component positive. Linear, so a direction can be drawn in it too. The seed changes nothing."""

    name: ClassVar[str] = "pca"
    min_examples: ClassVar[int] = 4

    @staticmethod
    def fit(activations: NDArray[np.float32], dims: int, seed: int) -> Points:
        """activations (example, d_model) -> Points with explained variance and basis."""
        check_activations(Pca.name, Pca.min_examples, activations, dims)
        rows = activations.astype(np.float64)
        model = PCA(n_components=dims, svd_solver="full").fit(rows)
        largest = np.abs(model.components_).argmax(axis=1)
        basis = model.components_ * np.sign(model.components_[np.arange(dims), largest])[:, None]
        return Points(
            points=((rows - model.mean_) @ basis.T).astype(np.float32),
            explained_variance=tuple(float(share) for share in model.explained_variance_ratio_),
            basis=basis.astype(np.float32),
        )


class Tsne:
    """t-SNE on the first principal axes, started from the first. Distances between groups mean little."""

    name: ClassVar[str] = "tsne"
    min_examples: ClassVar[int] = 5

    @staticmethod
    def fit(activations: NDArray[np.float32], dims: int, seed: int) -> Points:
        """activations (example, d_model) -> Points. Perplexity 30, or a third of the examples where they are few."""
        check_activations(Tsne.name, Tsne.min_examples, activations, dims)
        rows = principal_axes(activations)
        model = TSNE(
            n_components=dims, perplexity=min(PERPLEXITY, (len(rows) - 1) / 3), init="pca", random_state=seed, n_jobs=1
        )
        # Its OpenMP threads wait actively, which on a busy machine costs ten times what they gain.
        with threadpool_limits(limits=1):
            return Points(points=model.fit_transform(rows).astype(np.float32))


def separability(
    activations: NDArray[np.float32], labels: Sequence[str], seed: int = 0, groups: Sequence[str] | None = None
) -> SeparabilityAnswer:
    """Measures how well labels of activations (example, d_model) separate in the full space. groups: examples that stay
    in one fold, such as the texts of a pair. labels: at least two different ones."""
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    rows = activations.astype(np.float64)
    silhouette = float(silhouette_score(rows, codes)) if len(names) < len(rows) else None
    members = np.arange(len(rows))
    if groups is not None:
        members = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    found = _held_out_auroc(rows, codes, members, seed)
    if found is None:
        return SeparabilityAnswer(auroc=None, silhouette=silhouette)
    return SeparabilityAnswer(auroc=found.mean, auroc_interval=found.interval, silhouette=silhouette)


def _held_out_auroc(rows: Numbers, codes: NDArray[np.intp], groups: NDArray[np.intp], seed: int) -> Estimate | None:
    """Estimates the AUROC of a linear classifier on groups it was not fitted on, within each fold; the mean of one
    against the rest for more than two labels. None where a label has fewer than two groups, or every fold lacks a
    label. The interval is that of the groups in measured folds, with one degree of freedom less than the label, or the rest of
    one, with the fewest groups there has, as in a comparison of two samples; None where those are fewer than two."""
    grouped, classes = len(np.unique(groups)) < len(rows), int(codes.max()) + 1
    count = min(MAX_FOLDS, *(len(np.unique(groups[codes == label])) for label in range(classes)))
    if count < 2:
        return None
    kind = (StratifiedGroupKFold if grouped else StratifiedKFold)(count, shuffle=True, random_state=seed)
    # The penalty grows with d_model, so that it means the same for every model: |x|^2 ~ d_model once standardised.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0 / rows.shape[1], tol=1e-4, max_iter=1000))
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
    if not any(parts):
        return None
    sides = [{int(one) for fold in part for one in fold.positive_groups} for part in parts]
    sides += [{int(one) for fold in part for one in fold.negative_groups} for part in parts]
    names = np.array(sorted(set.union(*sides)))
    measured = [leave_one_group_out(folds, names) for folds in parts if folds]
    mean, freedom = float(np.mean([value for value, _ in measured])), min(map(len, sides)) - 1
    if freedom < 1:
        return Estimate(mean, None)
    return jackknife_interval(mean, np.mean([without for _, without in measured], axis=0), freedom=freedom)
