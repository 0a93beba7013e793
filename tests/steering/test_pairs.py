"""PairSet keeps its shape, and a split never parts a topic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steering.errors import InvalidRequest
from steering.pairs import MOST_FOLDS, ContrastivePair, PairSet, folds, groups_of, split

topics = st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=40)
share = st.floats(0.0, 0.95)
seeds = st.integers(0, 2**32)


def paired(names: list[str]) -> PairSet:
    return PairSet.of([ContrastivePair(f"+{i}", f"-{i}", topic) for i, topic in enumerate(names)])


@given(topics, share, seeds)
def test_a_split_by_topic_parts_no_topic_and_loses_no_pair(names: list[str], holdout: float, seed: int) -> None:
    parts = split(paired(names), holdout, seed)
    assert sorted(parts.fit_positive + parts.held_positive) == list(range(len(names)))
    assert (parts.fit_positive, parts.held_positive) == (parts.fit_negative, parts.held_negative)
    assert not {names[i] for i in parts.fit_positive} & {names[i] for i in parts.held_positive}
    assert parts.fit_positive


@given(topics, st.floats(0.01, 0.95), seeds)
def test_the_held_part_reaches_its_share_unless_one_topic_would_be_left(
    names: list[str], holdout: float, seed: int
) -> None:
    parts = split(paired(names), holdout, seed)
    fitted = {names[i] for i in parts.fit_positive}
    assert len(parts.held_positive) >= holdout * len(names) or len(fitted) == 1


@given(topics, share, seeds)
def test_same_seed_same_split(names: list[str], holdout: float, seed: int) -> None:
    assert split(paired(names), holdout, seed) == split(paired(names), holdout, seed)


def test_another_seed_holds_out_other_topics() -> None:
    pairs = paired([str(i // 4) for i in range(64)])
    assert len({split(pairs, 0.3, seed).held_positive for seed in range(20)}) > 10


def test_pairs_without_a_topic_stand_alone() -> None:
    pairs = PairSet.of([ContrastivePair(f"+{i}", f"-{i}") for i in range(10)])
    assert len(set(pairs.topics)) == 10
    assert len(split(pairs, 0.3, 0).held_positive) == 3


def test_holdout_zero_holds_out_nothing() -> None:
    assert split(paired(["a", "b"]), 0.0, 0).held_positive == ()


@pytest.mark.parametrize("holdout", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(holdout: float) -> None:
    with pytest.raises(InvalidRequest, match="holdout"):
        split(paired(["a", "b"]), holdout, 0)


@pytest.mark.parametrize(
    ("positive", "negative", "names", "words"),
    [
        ((), ("a",), (), "at least one positive"),
        (("a",), (), (), "at least one positive"),
        (("a", "b"), ("c",), (), "as many positives as negatives"),
        (("a", "b"), ("c", "d"), ("t",), "one topic for each pair"),
    ],
)
def test_sets_that_do_not_fit_together_are_refused(
    positive: tuple[str, ...], negative: tuple[str, ...], names: tuple[str, ...], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        PairSet(positive, negative, names)


def test_a_pair_set_iterates_over_its_pairs() -> None:
    assert list(paired(["a", "b"])) == [("+0", "-0"), ("+1", "-1")]
    assert len(paired(["a", "b"])) == 2


def test_pairs_that_share_a_text_are_one_group_whatever_their_topics() -> None:
    """a and b share a positive, b and c a text that is positive in one and negative in the other."""
    texts = [("x", "1", "a"), ("x", "2", "b"), ("3", "2", "c"), ("4", "5", "d"), ("6", "7", "d"), ("8", "9", None)]
    pairs = PairSet.of([ContrastivePair(*one) for one in texts])
    positive, negative = groups_of(pairs)
    assert positive == negative == ("a", "a", "a", "d", "d", "#5")
    for seed in range(10):
        for one in folds(pairs, 0.3, seed):
            held = {texts[i][side] for i in one.held_positive for side in (0, 1)}
            assert not held & {texts[i][side] for i in one.fit_positive for side in (0, 1)}


@given(topics)
def test_without_shared_texts_the_groups_are_the_topics(names: list[str]) -> None:
    assert groups_of(paired(names)) == (tuple(names), tuple(names))


def test_equal_texts_of_a_list_are_one_group() -> None:
    pairs = PairSet(("a", "b", "a", "c"), ("d", "d"), paired=False)
    assert groups_of(pairs) == (("+0", "+1", "+0", "+3"), ("-0", "-0"))
    assert folds(pairs, 0.3, 0) == (), "one negative text cannot be held out and fitted"


@given(topics, topics, st.floats(0.05, 0.95), seeds)
def test_folds_of_lists_part_no_topic_of_either_list(
    upper: list[str], lower: list[str], holdout: float, seed: int
) -> None:
    above, below = (tuple(f"{sign}{i}" for i in range(len(one))) for sign, one in (("+", upper), ("-", lower)))
    pairs = PairSet(above, below, tuple(upper), paired=False, negative_topics=tuple(lower))
    for one in folds(pairs, holdout, seed):
        held = {upper[i] for i in one.held_positive} | {lower[i] for i in one.held_negative}
        assert not held & ({upper[i] for i in one.fit_positive} | {lower[i] for i in one.fit_negative})
        assert sorted(one.fit_positive + one.held_positive) == list(range(len(upper)))
        assert sorted(one.fit_negative + one.held_negative) == list(range(len(lower)))


@given(st.integers(2, 60), st.integers(2, 60), st.floats(0.05, 0.95), seeds)
def test_folds_of_lists_without_topics_are_of_equal_size(upper: int, lower: int, holdout: float, seed: int) -> None:
    pairs = PairSet(tuple(f"+{i}" for i in range(upper)), tuple(f"-{i}" for i in range(lower)), paired=False)
    found = folds(pairs, holdout, seed)
    for sizes in ([len(one.held_positive) for one in found], [len(one.held_negative) for one in found]):
        assert max(sizes) - min(sizes) <= 1
    assert sum(len(one.held_positive) for one in found) == upper


@pytest.mark.parametrize(("holdout", "count"), [(0.001, MOST_FOLDS), (0.15, 7), (0.9, 3)])
def test_a_small_share_makes_no_more_than_a_few_folds(holdout: float, count: int) -> None:
    """A direction is fitted for every two of them, at each layer."""
    assert len(folds(paired([f"t{number}" for number in range(200)]), holdout, 0)) == count


def test_each_fold_holds_out_texts_of_both_lists_where_two_topics_are_in_both() -> None:
    pairs = PairSet(tuple("abcdefgh"), tuple("ij"), tuple("tuvwxyzs"), paired=False, negative_topics=tuple("tu"))
    for seed in range(20):
        assert all(one.held_positive and one.held_negative for one in folds(pairs, 0.3, seed))


def test_lists_have_a_topic_for_each_text_of_both_or_none() -> None:
    with pytest.raises(InvalidRequest, match="got 1 for 2 positive texts"):
        PairSet(("a", "b"), ("c",), ("t",), paired=False, negative_topics=("t",))
    with pytest.raises(InvalidRequest, match="got 0 for 1 negative texts"):
        PairSet(("a", "b"), ("c",), ("t", "u"), paired=False)
