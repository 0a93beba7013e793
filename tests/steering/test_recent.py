"""Recent: a bounded number of values, of which those used longest ago go first."""

from steering.recent import Recent


def test_what_was_not_used_for_longest_goes_first() -> None:
    recent: Recent[str, int] = Recent(2)
    assert recent.keep("a", 1) == 1
    recent.keep("b", 2)
    assert recent.get("a") == 1  # which makes b the older one
    recent.keep("c", 3)
    assert [recent.get(key) for key in "abc"] == [1, None, 3]


def test_a_value_kept_again_is_the_new_one_and_takes_no_second_place() -> None:
    recent: Recent[str, int] = Recent(2)
    for key, value in (("a", 1), ("b", 2), ("a", 3)):
        recent.keep(key, value)
    assert (recent.get("a"), recent.get("b")) == (3, 2)


def test_nothing_is_kept_where_nothing_may_be() -> None:
    recent: Recent[str, int] = Recent(0)
    assert recent.keep("a", 1) == 1
    assert recent.get("a") is None
