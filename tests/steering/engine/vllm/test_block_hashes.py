"""What steering adds to the hashes of cached blocks, and what travels with a request."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from steering.engine.vllm.hashing import steering_keys, with_steering
from steering.engine.vllm.messages import CaptureWindow, RequestSteering


def request(steering: RequestSteering | None) -> Any:
    extra = None if steering is None else {"steering": steering.packed()}
    return SimpleNamespace(sampling_params=SimpleNamespace(extra_args=extra))


def keys_by_block(
    steering: RequestSteering | None, blocks: int = 4, size: int = 16
) -> list[tuple[tuple[str, str], ...]]:
    return [steering_keys(request(steering), size * n, size * (n + 1)) for n in range(blocks)]


@pytest.mark.parametrize(("prompt_length", "block"), [(1, 0), (16, 0), (17, 1), (33, 2), (48, 2)])
def test_the_whole_fingerprint_enters_with_the_last_prompt_position(prompt_length: int, block: int) -> None:
    found = keys_by_block(
        RequestSteering("k", prompt_length=prompt_length, fingerprint="whole", prompt_fingerprint="prompt")
    )
    expected: list[tuple[tuple[str, str], ...]] = [(), (), (), ()]
    expected[0] = (("steering_prompt", "prompt"),)
    expected[block] += (("steering", "whole"),)
    assert found == expected


def test_steering_of_generated_tokens_leaves_the_blocks_of_the_prompt_alone() -> None:
    found = keys_by_block(RequestSteering("k", prompt_length=33, fingerprint="whole"))
    assert found == [(), (), (("steering", "whole"),), ()]


def test_plain_requests_have_the_hashes_of_plain_vllm() -> None:
    assert keys_by_block(None) == [(), (), (), ()]
    assert keys_by_block(RequestSteering("k", prompt_length=20)) == [(), (), (), ()]
    pooling = SimpleNamespace(sampling_params=None)
    assert steering_keys(pooling, 0, 16) == ()


def test_the_keys_are_added_to_those_of_vllm() -> None:
    steered = request(RequestSteering("k", prompt_length=5, fingerprint="whole"))
    outer = with_steering(lambda *_: ((("cache_salt", "s"),), 3))
    assert outer(steered, 0, 16, 0) == ((("cache_salt", "s"), ("steering", "whole")), 3)
    assert with_steering(lambda *_: (None, 0))(request(None), 0, 16, 0) == (None, 0)


@pytest.mark.parametrize("window", [None, CaptureWindow((0, 2), 1, 5, reduce=True, logits=False)])
def test_a_request_travels_as_json(window: CaptureWindow | None) -> None:
    steering = RequestSteering("key", "plan", "readings", 7, "whole", "prompt", window)
    assert RequestSteering.unpacked(json.loads(json.dumps(steering.packed()))) == steering
