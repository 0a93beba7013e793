"""The HTTP API and the unmodified openai client over this engine and the embedded model; tests/app/openai has the client's details."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from steering.engine.vllm.engine import VllmEngine
from tests.app.running import running
from tests.contracts.engines import unclosed

pytestmark = pytest.mark.embedded

PAIRS = [{"positive": f"I love {thing}", "negative": f"I hate {thing}"} for thing in ("tea", "rain", "cats", "maths")]


@pytest.fixture
def address(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("STEERING_ENGINE", "vllm")
    with running(unclosed(engine)) as address:
        yield address


def got(address: str, path: str) -> httpx2.Response:
    return httpx2.get(address + path, timeout=120)


def posted(address: str, path: str, body: dict[str, Any], status: int = 200) -> Any:
    answer = httpx2.post(address + path, json=body, timeout=120)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_a_vector_is_extracted_and_steers_generation_comparison_and_readout(address: str) -> None:
    shown = got(address, "/v1/capabilities").json()
    assert (shown["engine"], shown["executor"]) == ("vllm", "eager")
    assert "trained" not in shown["methods"]
    posted(address, "/v1/vectors/extract?wait=true", {"name": "love", "pairs": PAIRS}, 201)
    ask = {"prompt": "My opinion of this film:", "max_tokens": 12, "temperature": 0}
    steering = [{"vector": "love", "strength": 3.0, "layers": [12, 14, 16]}]
    plain = posted(address, "/v1/generate", ask)
    steered = posted(address, "/v1/generate", {**ask, "steering": steering, "readout": ["love"]})
    assert steered["choices"][0]["text"] != plain["choices"][0]["text"]
    assert steered["steering"]["applied"][0]["vector"] == "love@1"
    arms = [{"name": "plain"}, {"name": "loving", "steering": steering}]
    compared = posted(address, "/v1/compare", {**ask, "arms": arms})
    texts = [arm["choices"][0]["text"] for arm in compared["arms"]]
    assert texts == [plain["choices"][0]["text"], steered["choices"][0]["text"]]
    read = posted(address, "/v1/readout", {"texts": ["I love it", "I hate it"], "vectors": ["love"]})
    assert len(read["texts"]) == 2


def test_the_openai_client_completes_streams_and_steers(address: str) -> None:
    posted(address, "/v1/vectors/extract?wait=true", {"name": "love", "pairs": PAIRS}, 201)
    client = OpenAI(base_url=f"{address}/v1", api_key="unused")
    messages: list[Any] = [{"role": "user", "content": "Say something about rain."}]
    model = next(iter(client.models.list())).id
    whole = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0, logprobs=True)
    stream = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == whole.choices[0].message.content
    assert whole.choices[0].logprobs is not None
    steering = [{"vector": "love", "strength": 4.0, "layers": [12, 14, 16]}]
    steered = client.chat.completions.create(
        model=model, messages=messages, max_tokens=12, temperature=0, extra_body={"steering": steering}
    )
    assert steered.choices[0].message.content != text
    sampled = [
        client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=1, seed=seed)
        for seed in (3, 3, 4)
    ]
    first, again, other = (one.choices[0].message.content for one in sampled)
    assert first == again != other


def test_a_refusal_names_what_was_given(address: str) -> None:
    body = posted(address, "/v1/generate", {"prompt": "a", "max_tokens": 8193}, 400)
    assert body["error"]["code"] == "context_length_exceeded"


def test_a_policy_flags_answers_and_the_metrics_are_those_of_the_scheduler(address: str) -> None:
    posted(address, "/v1/vectors/extract?wait=true", {"name": "love", "pairs": PAIRS}, 201)
    watch = {"name": "watch", "vector": "love", "above": -100.0, "action": "flag"}
    assert httpx2.put(f"{address}/v1/policy", json={"monitors": [watch]}, timeout=120).status_code == 200
    try:
        answer = posted(address, "/v1/generate", {"prompt": "I", "max_tokens": 6, "temperature": 0})
        (flag,) = answer["choices"][0]["flags"]
        assert (flag["monitor"], flag["action"]) == ("watch", "flag")
        shown = got(address, "/v1/monitors/watch").json()
        assert shown["scores"] == answer["usage"]["completion_tokens"]
    finally:
        assert httpx2.delete(f"{address}/v1/policy", timeout=120).status_code == 204
    lines = dict(line.rsplit(" ", 1) for line in got(address, "/metrics").text.splitlines() if line[0] != "#")
    assert float(lines["steering_engine_steps_total"]) > 5
    assert float(lines["steering_queue_wait_seconds_count"]) > 0
    assert float(lines['steering_cache_blocks{state="total"}']) > 0
