"""Where the sampling kernel chooses for requests: the filters leave what torch leaves, and other rows are left to torch."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steering.engine.api import SamplingParams
from steering.engine.cpu.kernels.operations import sample
from steering.engine.transformers import sampling
from steering.engine.transformers.request import Request
from steering.plan.types import UNSTEERED
from steering.shapes import Tensor
from tests.steering.engine.loop.driven import open_stream

pytestmark = pytest.mark.usefixtures("kernels")


def sequence(**params: Any) -> Request:
    sampling = SamplingParams(max_tokens=8, **params)
    return Request(id=1, ids=[1, 2], prompt_length=2, plan=UNSTEERED, sampling=sampling, stream=open_stream())


def test_rows_that_need_more_than_filters_are_left_to_torch() -> None:
    """Whoever else is in the pass, a row is chosen by the same code."""
    asked: list[dict[str, float]] = [{"temperature": 0.0}, {"temperature": 0.9}, {"temperature": 0.9, "top_k": 3}, {"logprobs": 2},
             {"temperature": 1.5}, {"temperature": 0.9, "presence_penalty": 1.0}, {"temperature": 0.0, "top_p": 0.5}]  # fmt: skip
    rows = [sequence(**params, seed=number) for number, params in enumerate(asked)]
    logits, seen = (
        torch.randn(len(rows), 264, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16) * 5,
        list[int](),
    )

    def counted(logits: Tensor, *others: Any) -> Tensor:
        seen.append(len(logits))
        return sample(logits, *others)

    found = sampling.sample(logits, rows, counted)
    assert seen == [5]
    alone = [sampling.sample(logits[n : n + 1], [row], sample)[0] for n, row in enumerate(rows)]
    assert found == alone
    assert [one.token_id for one in sampling.sample(logits, rows)] == [one.token_id for one in found]


FILTERS = st.fixed_dictionaries(
    {
        "top_k": st.sampled_from([0, 1, 5, 80, 100_000]),
        "top_p": st.floats(0.01, 1.0),
        "min_p": st.sampled_from([0.0, 1e-6, 0.01, 0.3, 1.0]),
        "temperature": st.floats(0.05, 5.0),
    }
)


def nearly_excluded(logits: Tensor, params: dict[str, float], token: int) -> bool:
    """Whether sums in another order may exclude a token that is kept, or keep it."""
    scaled = (logits.double() - logits.double().max()) / params["temperature"]
    ranked = scaled.sort(descending=True, stable=True)
    allowed = ranked.values[: int(params["top_k"]) or len(logits)]
    shares = torch.softmax(allowed, dim=0)
    close = (shares.cumsum(0) - shares - params["top_p"]).abs() < 1e-4
    if params["min_p"]:
        close |= (allowed - math.log(params["min_p"])).abs() < 1e-4
    return token in ranked.indices[: len(allowed)][close].tolist()


@pytest.mark.usefixtures("threads")
@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), spread=st.floats(0.1, 30.0), asked=st.lists(FILTERS, min_size=1, max_size=6))
def test_filters_leave_the_tokens_that_torch_leaves(seed: int, spread: float, asked: list[dict[str, float]]) -> None:
    logits = (torch.randn(len(asked), 3001, generator=torch.Generator().manual_seed(seed)) * spread).to(torch.bfloat16)
    rows = [sequence(**params, seed=seed + number) for number, params in enumerate(asked)]
    found, expected = sampling.sample(logits, rows, sample), sampling.sample(logits, rows)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if one.token_id != other.token_id:
            each = (one.token_id, other.token_id)
            assert any(nearly_excluded(logits[number], asked[number], token) for token in each), (asked[number], each)


@pytest.mark.parametrize("top_p", [1e-300, 0.1, 0.5, 0.9, 0.999])
def test_the_mass_of_many_equal_tokens_is_right(top_p: float) -> None:
    """Of equal tokens the first are kept, up to a share of top_p of them."""
    count, vocabulary = 400, 49_152
    logits = torch.zeros(count, vocabulary, dtype=torch.bfloat16)
    rows = [sequence(temperature=1.0, top_p=top_p, seed=number) for number in range(count)]
    chosen = [one.token_id for one in sampling.sample(logits, rows, sample)]
    bound = max(math.ceil(top_p * vocabulary), 1)
    assert max(chosen) < bound
    assert max(chosen) >= 0.97 * (bound - 1)


@pytest.mark.parametrize(
    "extreme", [{"temperature": 1e-300}, {"temperature": 1e38}, {"temperature": 1.0, "top_k": 1 << 70}]
)
def test_extreme_settings_choose_an_unmasked_token(extreme: dict[str, float]) -> None:
    logits = torch.full((1, 264), -math.inf, dtype=torch.bfloat16)
    logits[0, 100:110] = 2.0
    for number in range(20):
        rows = [sequence(**extreme, seed=number)]
        (found,), (expected,) = sampling.sample(logits, rows, sample), sampling.sample(logits, rows)
        assert found.finite
        assert 100 <= found.token_id < 110
        assert found.token_id == expected.token_id
