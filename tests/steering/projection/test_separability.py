"""Separability: one for clouds apart, chance for labels that mean nothing, None for what cannot be told."""

import numpy as np
import pytest

from steering.errors import InvalidRequest
from steering.projection.separability import Separability, separability


def labelled(gap: float, seed: int = 0, examples: int = 60, names: str = "ab") -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = [names[i % len(names)] for i in range(examples)]
    centres = gap * rng.normal(size=(len(names), 40))
    rows = rng.normal(size=(examples, 40)) + centres[[names.index(label) for label in labels]]
    return rows.astype(np.float32), labels


@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
def test_clouds_apart_are_told_apart(names: str) -> None:
    found = separability(*labelled(gap=5.0, names=names))
    assert found.auroc == pytest.approx(1.0)
    assert found.silhouette is not None
    assert found.silhouette > 0.5


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_labels_that_mean_nothing_are_at_chance(names: str) -> None:
    """The reading is held out: fitted on all, forty dimensions would tell sixty random labels apart."""
    found = [separability(*labelled(gap=0.0, seed=seed, names=names), seed=seed) for seed in range(20)]
    assert np.mean([one.auroc for one in found if one.auroc is not None]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([one.silhouette for one in found if one.silhouette is not None]) == pytest.approx(0.0, abs=0.02)


def test_same_seed_same_figures() -> None:
    assert separability(*labelled(gap=0.3), seed=4) == separability(*labelled(gap=0.3), seed=4)


def test_a_label_with_one_example_has_no_auroc_and_two_single_texts_have_nothing() -> None:
    activations, _ = labelled(gap=5.0)
    lonely = separability(activations[:5], ["a", "a", "a", "a", "b"])
    assert lonely.auroc is None
    assert lonely.silhouette is not None
    assert separability(activations[:2], ["a", "b"]) == Separability(None, None)


def test_labels_that_do_not_fit_are_refused() -> None:
    activations, labels = labelled(gap=1.0)
    with pytest.raises(InvalidRequest, match="one label for each text"):
        separability(activations, labels[:-1])
    with pytest.raises(InvalidRequest, match="two different labels"):
        separability(activations, ["a"] * 60)
