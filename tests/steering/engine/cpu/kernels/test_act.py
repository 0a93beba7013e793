"""The operation behind vLLM's layers changes a stream as Python does, and calls Python only where more is to be done than edits."""

from collections.abc import Iterator

import pytest
import torch

from steering.engine.vllm.operation import Attached, begin_pass, end_pass
from steering.injection.injector import Injection
from steering.model.hook_points import HEADS, point_of
from steering.plan.types import DoseGuard
from steering.shapes import Tensor
from tests.steering.engine.cpu.kernels.test_steer import LAYERS, TOLERANCE, injections, states

pytestmark = pytest.mark.usefixtures("loaded_library")
WIDTH = 40
NOWHERE = frozenset[int]()


class Called:
    """Stands for the steering of a worker: notes where it was called."""

    def __init__(self) -> None:
        self.points: list[int] = []

    def act(self, point: int, hidden: Tensor, residual: Tensor | None) -> None:
        """Notes a call."""
        assert residual is None or residual.shape == hidden.shape
        self.points.append(point)


@pytest.fixture
def called() -> Iterator[Called]:
    """Attaches itself as a worker of vLLM does."""
    found = Called()
    Attached.act = found.act
    yield found
    Attached.act = None


def act(hidden: Tensor, residual: Tensor | None, point: int) -> None:
    torch.ops.steering.act(hidden, residual, point)


def acted(injection: Injection, layer: int, hidden: Tensor, residual: Tensor | None) -> Tensor:
    """Returns what a layer adds to the stream once Python has steered it."""
    stream = hidden.float() if residual is None else hidden.float() + residual
    return hidden + (injection.apply(layer, stream) - stream).to(hidden.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(8))
async def test_it_equals_the_tensor_operations(dtype: torch.dtype, seed: int, called: Called) -> None:
    """Streams of one and of two parts, and noted doses, with and without a guard. Layers with a controller are Python's."""
    ours, theirs = await injections(seed, WIDTH, DoseGuard(0.3, "clamp") if seed % 2 else None)
    begin_pass(ours, NOWHERE, LAYERS)
    for layer in range(LAYERS):
        if layer in ours.controllers.layers:
            continue
        hidden, residual = states(dtype, ours.tokens, WIDTH, layer), states(dtype, ours.tokens, WIDTH, layer + 9)
        parts = None if layer == 1 else residual
        expected = acted(theirs, layer, hidden, parts)
        act(hidden, parts, layer)
        torch.testing.assert_close(hidden, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    end_pass()
    for found, expected in zip(ours.noted()[0], theirs.noted()[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not called.points


async def test_python_is_called_where_something_is_read_and_where_no_pass_runs(called: Called) -> None:
    injection, _ = await injections(0, WIDTH)
    hidden = states(torch.float32, injection.tokens, WIDTH)
    before, inner = hidden.clone(), point_of(2, HEADS)
    begin_pass(injection, frozenset({1, inner}), LAYERS)
    for point in (1, inner, point_of(0, HEADS)):
        act(hidden, None, point)
    end_pass()
    act(hidden, None, 0)
    begin_pass(None, NOWHERE, LAYERS)
    act(hidden, None, 0)
    end_pass()
    assert called.points == [1, inner, 0]
    assert torch.equal(hidden, before)


async def test_a_stream_of_another_form_is_left_to_python(called: Called) -> None:
    injection, _ = await injections(0, WIDTH)
    begin_pass(injection, NOWHERE, LAYERS)
    layer = injection.edited[0]
    act(states(torch.float32, injection.tokens + 1, WIDTH), None, layer)
    act(states(torch.float32, WIDTH, injection.tokens).T, None, layer)
    end_pass()
    assert called.points == [layer, layer]
