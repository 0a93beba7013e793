"""What the server and vLLM's workers send each other arrives as it was, and nothing else is read."""

import math

import msgspec
import pytest
import torch

from steering.engine.vllm.messages import (
    FailureMessage,
    MeasuredDoses,
    Message,
    MonitorReading,
    ReportMessage,
    TokenMessage,
    decode,
    encode,
)
from steering.injection.readings import Reading
from steering.plan.types import HeldReadout, SteeringPlan
from tests.fakes import ScriptedEngine
from tests.plans import plan_for, random_items, vectors_for


@pytest.mark.parametrize("seed", range(12))
async def test_a_plan_arrives_as_it_was(seed: int) -> None:
    info = ScriptedEngine().info
    items = random_items(seed, info.layer_count)
    if seed % 3 == 0:
        items.append({"vector": "alpha", "strength": 2.0, "layers": [0], "hold": {"score": 0.4}})
    plan = await plan_for(items, vectors_for(info), info)
    found = decode(encode(plan), SteeringPlan)
    assert encode(found) == encode(plan)
    assert found.spec == plan.spec
    for layer, edits in plan.layers.items():
        for one, its in zip(edits, found.layers[layer], strict=True):
            assert torch.equal(one.write, its.write)
            assert torch.equal(one.numbers, its.numbers)
    assert [one.condition for one in found.interventions] == [one.condition for one in plan.interventions]


def test_messages_arrive_as_they_were() -> None:
    report = ReportMessage(
        "a",
        MeasuredDoses((1,), torch.tensor([[[2.5, 3.0]]]), torch.tensor([2.5, 2.0, 0.0]), (1 << 30,)),
        (None, math.inf),
        ({2: HeldReadout(1.0, 2.0, 3.0)},),
        {1: torch.arange(6.0).view(2, 3), 4: torch.empty(0, 3)},
        torch.tensor([[math.nan, 1.0]]),
    )
    sent: list[Message] = [TokenMessage("a", 0, True, {"up": 0.5}, {1: 2.0}), report, FailureMessage("b", "reason")]
    token, found, failure = decode(encode(sent), list[Message])
    assert isinstance(found, ReportMessage)
    assert isinstance(token, TokenMessage)
    assert (token.readout, token.scores) == ({"up": 0.5}, {1: 2.0})
    assert (found.scores, found.held) == (report.scores, report.held)
    assert found.doses is not None
    assert (found.doses.layers, found.doses.fired) == ((1,), (1 << 30,))
    assert found.doses.doses.tolist() == [[[2.5, 3.0]]]
    assert torch.equal(found.activations[1], report.activations[1])
    assert found.activations[4].shape == (0, 3)
    assert found.logits is not None
    assert found.logits.isnan().tolist() == [[True, False]]
    assert isinstance(failure, FailureMessage)


READING = Reading("up", 1, torch.ones(4), 1.0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04K\x01.",  # a pickle
        encode([READING])[:-1],
        encode([READING]) + b"\x00",
        encode([{"name": "up", "layer": "1", "direction": [[4], b"\0" * 16], "scale": 1.0}]),
        encode([{"name": "up", "layer": 1, "direction": [[4], b"\0" * 15], "scale": 1.0}]),
        encode([{"name": "up", "layer": 1, "direction": [[-4], b""], "scale": 1.0}]),
        encode([{"name": "up", "layer": 1, "direction": [4.0], "scale": 1.0}]),
        encode([{"name": "up", "layer": 1}]),
        encode([["token", "a"]]),
    ],
)
def test_what_is_not_of_the_declared_type_is_not_read(content: bytes) -> None:
    with pytest.raises(ValueError):
        decode(content, tuple[Reading, ...])


def test_other_types_are_not_sent() -> None:
    for value in (object(), torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.int64)):
        with pytest.raises(TypeError):
            encode(value)


def test_a_specification_that_no_caller_may_write_is_not_read() -> None:
    content = encode([{"reading": READING, "at": "sometimes"}])
    with pytest.raises(msgspec.ValidationError, match="sometimes"):
        decode(content, tuple[MonitorReading, ...])
