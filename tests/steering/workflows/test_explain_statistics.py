"""How far the score of a text lies from neutral text is calibrated for texts of any length."""

from collections.abc import Callable, Iterator
from math import isnan, log
from typing import Any, get_args

import pytest
import torch
from torch.overrides import TorchFunctionMode

from steering.schemas.messages import ScorePosition
from steering.workflows.readout import neutral_statistics

TEXTS, TOKENS, AXES = 64, 10, 200


def neutral(generator: torch.Generator, tokens: int) -> torch.Tensor:
    """Scores (token, axis) of a text with a level of its own, whose tokens vary twice as much around it."""
    return torch.randn(AXES, generator=generator) + 2.0 * torch.randn(tokens, AXES, generator=generator)


def shares(tokens: int) -> Iterator[float]:
    """The share of axes along which neutral texts of so many tokens stand out by 2."""
    generator = torch.Generator().manual_seed(tokens)
    known = neutral_statistics([neutral(generator, TOKENS) for _ in range(TEXTS)])
    for _ in range(20):
        means = neutral(generator, tokens).mean(0).tolist()
        yield sum(abs(m - one.mean) >= 2 * one.deviation_of(tokens) for m, one in zip(means, known, strict=True)) / AXES


@pytest.mark.parametrize("tokens", [1, 2, 4, 10])
def test_one_neutral_text_in_twenty_stands_out_however_short_it_is(tokens: int) -> None:
    found = list(shares(tokens))
    assert sum(found) / len(found) == pytest.approx(0.05, abs=0.015)


def test_the_variance_within_a_text_is_not_that_around_the_mean_of_all() -> None:
    """The tokens vary by 4 around the level of their text, which takes one degree of freedom of each text."""
    generator = torch.Generator().manual_seed(0)
    known = neutral_statistics([neutral(generator, TOKENS) for _ in range(TEXTS)])
    assert sum(one.within for one in known) / AXES == pytest.approx(4.0, rel=0.02)


def test_long_texts_are_not_thought_to_vary_less_than_those_that_were_read() -> None:
    generator = torch.Generator().manual_seed(0)
    known = neutral_statistics([neutral(generator, TOKENS) for _ in range(TEXTS)])
    assert all(
        one.deviation_of(TOKENS) == one.deviation_of(50 * TOKENS) == pytest.approx(one.deviation) for one in known
    )


def test_texts_of_one_token_have_statistics_and_of_texts_that_are_alike_no_z_is_known() -> None:
    one, two = neutral_statistics([torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 3.0]])])
    assert (one.mean, one.within) == (1.5, 0.0)
    assert one.deviation_of(1) == pytest.approx(0.5**0.5)
    assert one.z(2.5, 1, "mean") == pytest.approx(2**0.5)
    assert all(isnan(two.z(score, 1, position)) for score in (3.0, 4.0) for position in get_args(ScorePosition))


@pytest.mark.parametrize("tokens", [1, 3, 10])
def test_the_largest_score_of_neutral_text_does_not_stand_out_however_short_it_is(tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    known = neutral_statistics([neutral(generator, TOKENS) for _ in range(TEXTS)])
    found = [neutral(generator, tokens).amax(0).tolist() for _ in range(20)]
    z = [one.z(score, tokens, "max") for text in found for one, score in zip(known, text, strict=True)]
    assert sum(z) / len(z) == pytest.approx(0.0, abs=0.05)
    assert sum(abs(one) >= 2 for one in z) / len(z) == pytest.approx(0.05, abs=0.015)


def heavy(generator: torch.Generator, tokens: int) -> torch.Tensor:
    """Scores (token, axis) of a text with a level of its own, whose tokens follow a Gumbel distribution around it."""
    level = torch.randn(AXES, generator=generator)
    return level - torch.empty(tokens, AXES).exponential_(generator=generator).log()


@pytest.mark.parametrize("factor", [2, 8, 40])
def test_the_largest_score_of_a_text_longer_than_neutral_ones_does_not_stand_out(factor: int) -> None:
    """Of so many times as many tokens; without the extrapolation the mean lies log(factor) / 1.6 too high."""
    generator = torch.Generator().manual_seed(factor)
    known = neutral_statistics([heavy(generator, 20) for _ in range(TEXTS)])
    found = [heavy(generator, 20 * factor).amax(0).tolist() for _ in range(20)]
    z = [one.z(score, 20 * factor, "max") for text in found for one, score in zip(known, text, strict=True)]
    assert sum(z) / len(z) == pytest.approx(0.0, abs=0.15)
    assert sum(one.growth for one in known) / AXES == pytest.approx(1.0, abs=0.05)


def test_the_largest_score_is_compared_with_texts_of_at_least_as_many_tokens() -> None:
    """The short texts end before the largest scores of the others come."""
    generator = torch.Generator().manual_seed(1)
    short = [torch.randn(2, 1, generator=generator) for _ in range(30)]
    long = [
        torch.cat([torch.randn(3, 1, generator=generator), 9.0 + torch.randn(1, 1, generator=generator)])
        for _ in range(34)
    ]
    (known,) = neutral_statistics([*short, *long])
    assert len(known.maxima) == 4
    mean, deviation = known.maxima[3].tolist()
    largest = torch.cat([scores.amax(0) for scores in long])
    assert (mean, deviation) == pytest.approx((float(largest.mean()), float(largest.std())), rel=1e-4)
    both = torch.cat([scores[:2].amax(0) for scores in (*short, *long)])
    assert known.maxima[1].tolist() == pytest.approx([float(both.mean()), float(both.std())], rel=1e-4)


def test_lengths_that_fewer_than_half_of_the_texts_have_are_extrapolated() -> None:
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randn(tokens, 1, generator=generator) for tokens in (4,) * 5 + (9,) * 3]
    (known,) = neutral_statistics(texts)
    assert len(known.maxima) == 4
    mean, deviation = known.maxima[3].tolist()
    assert known.z(mean + known.growth * log(2.0) + deviation, 8, "max") == pytest.approx(1.0, rel=1e-4)
    assert known.growth > 0.0


class NumbersRead(TorchFunctionMode):
    """Counts the numbers in the tensors that functions other than views are given."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = args[0] if args else None
        if getattr(func, "__name__", "") not in ("__getitem__", "__len__", "__get__", "size", "unbind"):
            tensors = given if isinstance(given, list | tuple) else [given]
            self.count += sum(one.numel() for one in tensors if isinstance(one, torch.Tensor))
        return func(*args, **(kwargs or {}))


def test_the_largest_scores_take_work_that_grows_as_the_length_of_the_texts() -> None:
    counts = []
    for tokens in (200, 400):
        generator = torch.Generator().manual_seed(3)
        texts = [torch.randn(tokens, 1, generator=generator) for _ in range(4)]
        with NumbersRead() as read:
            neutral_statistics(texts)
        counts.append(read.count)
    assert counts[1] < 2.2 * counts[0]
