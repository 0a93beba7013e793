"""Sampling on a CUDA device: the filters and penalties of the CPU, and waits that do not grow with the rows."""

import warnings
from typing import Any

import pytest
import torch

from steering.engine.api import SamplingParams
from steering.engine.transformers.sampling import adjusted, candidates, sample, uniform
from tests.steering.engine.sampling.test_sampler import row

MIXED: list[dict[str, Any]] = [
    {"temperature": 0.8},
    {"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 1.0, "top_k": 40, "min_p": 0.05, "logit_bias": {7: 2.0}},
    {"temperature": 0.0, "logprobs": 3, "frequency_penalty": 0.3},
]


def logits(rows: int) -> torch.Tensor:
    return torch.randn(rows, 5000, generator=torch.Generator().manual_seed(rows)) * 4


def waits(rows: int) -> int:
    """How often the host waits for the device in one call of `sample`."""
    on_device = logits(rows).cuda()
    sequences = [row(SamplingParams(seed=n, **MIXED[n % len(MIXED)]), [1, 2, 3]) for n in range(rows)]
    sample(on_device, sequences)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            sample(on_device, sequences)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)


def test_the_number_of_waits_is_that_of_few_rows() -> None:
    assert waits(32) == waits(4)


def test_filters_and_penalties_are_those_of_the_cpu() -> None:
    rows = [row(SamplingParams(seed=n, **MIXED[n % 3]), [1, 2, 2]) for n in range(9)]
    host = logits(9)
    torch.testing.assert_close(adjusted(host.cuda(), rows).cpu(), adjusted(host, rows))
    filtered = [one for one in rows if one.sampling.top_p < 1 or one.sampling.top_k]
    scaled = (host - host.amax(1, keepdim=True))[: len(filtered)]
    params = [one.sampling for one in filtered]
    (there, there_ids), (here, here_ids) = candidates(scaled.cuda(), params), candidates(scaled, params)
    for number in range(len(filtered)):
        kept = there_ids[number][there[number].isfinite()].cpu()
        assert kept.tolist() == here_ids[number][here[number].isfinite()].tolist()


def test_noise_is_a_function_of_seed_and_index() -> None:
    device = torch.device("cuda")
    numbers = uniform([1, 2], [0, 5], 1000, device)
    assert torch.equal(numbers[1:], uniform([2], [5], 1000, device))
    assert bool(((numbers >= 0) & (numbers < 1)).all())


@pytest.mark.parametrize("seed", range(3))
def test_a_row_is_the_same_alone(seed: int) -> None:
    sequences = [row(SamplingParams(seed=seed + n, **MIXED[n % 2]), [1, 2, 3]) for n in range(8)]
    together = sample(logits(8).cuda(), sequences)
    alone = [sample(logits(8)[n : n + 1].cuda(), [sequences[n]])[0] for n in range(8)]
    assert [one.token_id for one in together] == [one.token_id for one in alone]
