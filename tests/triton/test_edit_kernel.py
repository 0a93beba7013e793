"""The Triton kernel of edits does what `LayerEdits.apply` does: in Triton's interpreter, on a CPU. It is compiled for GPUs too, and not run
there. `make test-triton` runs these tests, in which the operator `steering::edit` is the kernel on a CPU as well.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from steering.injection import fused
from steering.plan.types import LINEAR, ROTATE
from steering.shapes import Residual, Tensor
from tests.steering.injection.test_random_plans import assert_as_the_reference

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _kernel_on_a_cpu() -> Iterator[None]:
    fused.LIBRARY.impl("edit", fused.by_kernel, "CPU", allow_override=True)
    yield
    fused.LIBRARY.impl("edit", fused.by_operations, "CPU", allow_override=True)


@given(seed=st.integers(0, 1 << 30), bounded=st.booleans(), mandatory=st.booleans())
@settings(max_examples=10, deadline=None)
def test_residuals_and_doses_of_random_plans_are_those_of_the_reference(
    seed: int, bounded: bool, mandatory: bool
) -> None:
    """All operations, units, scopes, conditions and held readouts, of prompts in pieces and decode tokens of three requests together."""
    assert_as_the_reference(seed, bounded=bounded, mandatory=mandatory, fused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d_model", [16, 96, 576, 1536])
def test_it_differs_by_rounding_in_every_width_and_dtype(d_model: int, dtype: torch.dtype) -> None:
    assert fused.differs(CPU, d_model, dtype) < (1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps)


def tables_of(numbers: list[list[float]], kinds: list[int], vectors: Tensor, weights: Tensor) -> list[Any]:
    """Returns tables of one request with those edits, each weighed by its own column, whose tokens have those weights."""
    count, tokens = len(kinds), len(weights)
    rows = torch.zeros(2, 1, count, dtype=torch.int64)
    rows[1, 0] = torch.arange(1, count + 1)
    codes = torch.tensor([[0] * 5, *([kind, 0, column, 0, 0] for column, kind in enumerate(kinds))])
    noted = torch.zeros(1, tokens, count), torch.zeros(1, tokens), torch.zeros(1, tokens)
    vectors, given = torch.cat([torch.zeros(1, vectors.shape[1]), vectors]), torch.tensor([[0.0] * 3, *numbers])
    return [vectors, given, codes, rows, torch.ones(tokens).long(), weights, torch.full((tokens,), torch.inf), *noted]


def both(residual: Residual, tables: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the residual, the doses and the change by the kernel, and by operations of torch."""
    found = []
    for apply in (fused.edit, fused.by_operations):
        given = [one.clone() for one in tables]
        found.append([apply(residual, *given, 0, 0), given[7], given[8]])
    return found[0], found[1]


def test_turns_end_at_the_direction_and_at_its_opposite() -> None:
    """Toward it and away, farther than to either end, from places next to both, and where there is no plane to turn in."""
    direction, other = torch.eye(8)[:2]
    starts = [direction, -direction, other, direction + 1e-3 * other, -direction + 1e-3 * other, torch.zeros(8)]
    angles = [0.0, 1e-4, 0.4, 1.6, 3.0, 3.2, 9.0]
    angles += [-one for one in angles]
    residual = torch.stack([5.0 * start for start in starts for _ in angles])
    weights = torch.tensor(angles * len(starts))[:, None]
    found, expected = both(residual, tables_of([[0.0, 0.0, 1.0]], [ROTATE], direction[None], weights))
    for one, its in zip(found, expected, strict=True):
        torch.testing.assert_close(one, its, rtol=1e-4, atol=1e-5)


def test_edits_of_weight_zero_add_nothing_even_if_their_numbers_overflow() -> None:
    vectors, weights = torch.full((2, 8), 1e30), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    numbers = [[torch.inf, 1e38, 1.0], [0.5, 0.0, 1e-30]]
    (after, doses, _), (expected, _, _) = both(torch.ones(2, 8), tables_of(numbers, [LINEAR, LINEAR], vectors, weights))
    torch.testing.assert_close(after, expected)
    assert doses.count_nonzero() == 1
    assert torch.equal(after[1], torch.ones(8))


def test_rows_are_as_alone_and_a_request_may_have_many_edits() -> None:
    generator, count = torch.Generator().manual_seed(0), 33
    vectors, weights = torch.randn(count, 24, generator=generator), torch.randn(5, count, generator=generator)
    tables = tables_of([[0.3, 0.1, 1.0]] * count, [LINEAR] * count, vectors, weights)
    residual = torch.randn(5, 24, generator=generator)
    (after, *_), (expected, *_) = both(residual, tables)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    for token in range(5):
        alone = [*tables[:4], tables[4][:1], weights[token : token + 1], tables[6][:1]]
        alone += [one[:, :1].contiguous() for one in tables[7:]]
        assert torch.equal(fused.edit(residual[token : token + 1], *alone, 0, 0)[0], after[token])


def test_the_operator_is_one_that_torch_can_trace() -> None:
    """Its schema says what is written, and its form without numbers gives the right shape."""
    tables = tables_of([[0.3, 0.1, 1.0]], [LINEAR], torch.ones(1, 8), torch.ones(2, 1))
    opcheck: Any = torch.library.opcheck
    opcheck(fused.edit, (torch.ones(2, 8), *tables, 0, 0), test_utils=("test_schema", "test_faketensor"))


def test_a_device_on_which_it_does_not_run_is_refused_with_the_reason() -> None:
    with capture_logs() as logs:
        assert not fused.has_kernel(torch.device("cuda", 99), 16, torch.float32)
    assert [line["event"] for line in logs] == ["edit_kernel_refused"]
    assert not fused.has_kernel(CPU, 16, torch.float32)


def test_it_is_compiled_for_gpus_and_keeps_its_numbers_in_registers() -> None:
    """In a process of its own, where Triton compiles: for an A100 and an H100, up to a d_model of 8192."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.triton.compiled"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        found = json.loads(line)
        assert found["registers"] <= 65536 // (32 * found["warps"])
        assert found["stack"] <= 32, f"{found} spills"  # Triton 3.7 takes 32 bytes for cosines
