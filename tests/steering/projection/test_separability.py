"""Separability: one for clouds apart, chance for labels that mean nothing, None for what cannot be measured."""

import numpy as np
import pytest

from steering.projection.scikit_learn import separability
from steering.schemas.latent_space import SeparabilityAnswer


def labelled(gap: float, seed: int = 0, examples: int = 60, names: str = "ab") -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    labels = [names[i % len(names)] for i in range(examples)]
    centres = gap * rng.normal(size=(len(names), 40))
    rows = rng.normal(size=(examples, 40)) + centres[[names.index(label) for label in labels]]
    return rows.astype(np.float32), labels


@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
def test_clouds_apart_are_separated(names: str) -> None:
    found = separability(*labelled(gap=5.0, names=names))
    assert found.auroc == pytest.approx(1.0)
    assert found.silhouette is not None
    assert found.silhouette > 0.5


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_labels_that_mean_nothing_are_at_chance(names: str) -> None:
    """The reading is held out: fitted on all, forty dimensions would separate sixty random labels."""
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
    assert separability(activations[:2], ["a", "b"]) == SeparabilityAnswer(auroc=None, silhouette=None)


def twins(pairs: int = 40, seed: int = 0, gap: float = 0.0) -> tuple[np.ndarray, list[str], list[str]]:
    """Two texts of a pair are nearly equal and have opposite labels; the concept moves them by `gap` along one axis."""
    rng = np.random.default_rng(seed)
    topic = rng.normal(size=(pairs, 40))
    sides = [topic + 0.1 * rng.normal(size=topic.shape) + sign * gap * np.eye(40)[0] for sign in (0.5, -0.5)]
    return np.concatenate(sides).astype(np.float32), ["a"] * pairs + ["b"] * pairs, [str(i) for i in range(pairs)] * 2


def test_pairs_split_over_folds_read_below_chance_and_kept_together_at_chance() -> None:
    split = [separability(*twins(seed=seed)[:2], seed=seed).auroc for seed in range(6)]
    assert max(one for one in split if one is not None) < 0.4
    kept = [separability(*twins(seed=seed)[:2], seed=seed, groups=twins(seed=seed)[2]) for seed in range(20)]
    assert np.mean([one.auroc for one in kept if one.auroc is not None]) == pytest.approx(0.5, abs=0.05)
    assert sum(one.auroc_interval[0] <= 0.5 <= one.auroc_interval[1] for one in kept if one.auroc_interval) >= 18


def test_a_planted_difference_of_pairs_is_found_with_an_interval() -> None:
    activations, labels, groups = twins(gap=4.0)
    found = separability(activations, labels, groups=groups)
    assert found.auroc_interval is not None
    assert 0.7 < found.auroc_interval[0] < (found.auroc or 0.0) <= found.auroc_interval[1]


def test_shuffled_labels_are_at_chance_within_their_intervals() -> None:
    found = [separability(*labelled(gap=0.0, seed=seed), seed=seed) for seed in range(20)]
    assert sum(one.auroc_interval[0] <= 0.5 <= one.auroc_interval[1] for one in found if one.auroc_interval) >= 18


def one_label_per_group(groups: int, seed: int) -> tuple[np.ndarray, list[str], list[str]]:
    """Six texts of a group share a random effect and a label, which has none."""
    rng = np.random.default_rng([groups, seed])
    members = np.repeat(np.arange(groups), 6)
    rows = rng.normal(size=(groups, 40))[members] + rng.normal(size=(len(members), 40))
    return rows.astype(np.float32), ["ab"[one % 2] for one in members], [str(one) for one in members]


@pytest.mark.parametrize("groups", [6, 8, 14])
def test_groups_of_one_label_without_an_effect_are_at_chance_within_their_intervals(groups: int) -> None:
    """Groups of folds that could not be measured counted as observations equal to the mean, and 54 of 60 intervals of 6 groups excluded 0.5."""
    found = []
    for seed in range(60):
        activations, labels, members = one_label_per_group(groups, seed)
        found.append(separability(activations, labels, seed, members).auroc_interval)
    assert None not in found
    assert sum(one[0] <= 0.5 <= one[1] for one in found if one is not None) >= 52


def test_a_label_with_one_group_has_no_auroc() -> None:
    activations, labels, groups = one_label_per_group(6, 0)
    one = ["0" if label == "a" else group for label, group in zip(labels, groups, strict=True)]
    assert separability(activations, labels, groups=one).auroc is None
