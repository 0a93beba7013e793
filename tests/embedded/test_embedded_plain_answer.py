"""The unsteered arm of a comparison over HTTP, in bfloat16 and the default configuration: it never depends on what else runs."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from steering.engine.cpu.kernel_choice import KernelChoice
from steering.model.device import has_avx2
from tests.embedded.material import pair_words
from tests.embedded.server_process import ServerProcess

pytestmark = pytest.mark.embedded

KEYS = tuple(f"key-of-caller-{index}" for index in range(7))
"""The cache of prompts is shared within a key: the first request of each key computes the prompt, later ones find it."""
STRENGTHS = (-1.67, -0.5, 0.0, 0.3, 3.67)


def post(url: str, key: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer to a request that must succeed."""
    answer = httpx2.post(url + path, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=240)
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json()
    return found


def plain(url: str, key: str, strength: float) -> list[tuple[int, float]]:
    """Returns the tokens of the unsteered arm with their log probabilities, beside an arm at a position of the dial."""
    arms: list[dict[str, Any]] = [{"name": "plain", "steering": []}]
    if strength:
        arms.append({"name": "steered", "steering": [{"vector": "sentiment", "strength": strength}]})
    body = {
        "messages": [{"role": "user", "content": "How is your new apartment?"}],
        "arms": arms,
        "baseline": "plain",
        "seed": 7,
        "temperature": 0.7,
        "max_tokens": 16,
        "logprobs": 1,
    }
    tokens = post(url, key, "/v1/compare", body)["arms"][0]["choices"][0]["tokens"]
    return [(token["id"], token["logprob"]) for token in tokens]


@contextmanager
def load(url: str) -> Iterator[None]:
    """Keeps three other requests running, steered and not, of several lengths, until the block ends."""
    ended = threading.Event()

    def ask(number: int) -> None:
        steering = [{"vector": "sentiment", "strength": 1.0}] if number else []
        while not ended.is_set():
            body = {
                "prompt": "stone river cloud " * (5 + 11 * number),
                "max_tokens": 7 + 6 * number,
                "steering": steering,
            }
            post(url, KEYS[0], "/v1/generate", body)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_a_plain_answer_is_the_same_in_fifty_runs_at_any_dial_cold_and_cached_idle_and_under_load(
    compiled_cache: Path, tmp_path: Path
) -> None:
    with ServerProcess(tmp_path, compiled_cache, api_keys=",".join(KEYS)) as server:
        few = {"name": "sentiment", "pairs": pair_words("sentiment")[:8], "layers": [14], "holdout": 0}
        post(server.url, KEYS[0], "/v1/vectors/extract?wait=true", few)
        server.until_compiled()
        found = []
        for key in KEYS[1:4]:
            found += [plain(server.url, key, strength) for strength in STRENGTHS]
        with load(server.url):
            for key in KEYS[4:]:
                found += [plain(server.url, key, strength) for strength in STRENGTHS]
        found += [plain(server.url, key, strength) for key in KEYS[1:5] for strength in STRENGTHS]
        shown = server.client.capabilities()
    if has_avx2():
        kept = [json.loads(path.read_text())["choice"] for path in (compiled_cache / "compiled").glob("*-choice.json")]
        choices = {str(KernelChoice(**one)) for one in kept}
        assert shown.kernels in choices, "measured at the first start, kept beside the graphs, and shown"
        assert shown.weight_bytes.keys() >= {"Q4_1", "Q8_0"}
    assert len(found) == 50
    assert all(one == found[0] for one in found), (
        f"{len({str(one) for one in found})} different answers of {shown.executor}"
    )
