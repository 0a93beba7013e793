"""A batch answers each line as /v1/generate does, in order, in the background, and keeps what is finished when it is cancelled."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest

from app.api.batch import AHEAD_LINES, WAITING_BYTES, parse_lines
from app.core.settings import Settings
from steering.engine.api import GenerationRequest, TokenEvent
from steering.errors import LimitExceeded, NonfiniteActivations, StoreUnavailable
from steering.schemas.generation import BatchLine
from steering.store.store import NamespaceStore
from steering.vectors import ConceptVector
from steering.workflows.generate import BACKGROUND_CONCURRENCY
from tests.app.changed_store import ChangedStore, changed
from tests.app.conftest import Server, StartServer
from tests.fakes import NONFINITE_STRENGTH, ScriptedEngine
from tests.polling import holds, until

HEADERS = {"content-type": "application/jsonl"}
KEY = "sk-admin-key-0123456789"


def written(*lines: Any) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def started(server: Server, *lines: Any, path: str = "/v1/generate/batch") -> dict[str, Any]:
    answer = await server.client.post(path, content=written(*lines), headers=HEADERS)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def finished(server: Server, job: dict[str, Any]) -> dict[str, Any]:
    await server.client.get(f"/v1/jobs/{job['id']}/events")
    found: dict[str, Any] = (await server.client.get(f"/v1/jobs/{job['id']}")).json()
    return found


async def output(server: Server, job: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await server.client.get(f"/v1/jobs/{job['id']}/output")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/jsonl")
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_every_line_is_answered_as_a_request_of_its_own(server: Server) -> None:
    await server.register()
    bodies = [
        {"prompt": f"Number {i}", "max_tokens": 1 + i % 5, "seed": i, "n": 1 + i % 2,
         "steering": [{"vector": "sentiment", "strength": 0.1 * (i % 3)}]}
        for i in range(230)
    ]  # fmt: skip
    job = await started(server, *({**body, "id": f"line {i}"} for i, body in enumerate(bodies)))
    assert (job["kind"], job["status"]) == ("generate_batch", "queued")
    record = await finished(server, job)
    assert (record["status"], record["result"]) == (
        "succeeded",
        {"requests": 230, "succeeded": 230, "failed": 0},
    )
    assert record["progress"]["done"] == 230
    found = await output(server, job)
    assert [(one["index"], one["id"]) for one in found] == [(i, f"line {i}") for i in range(230)]
    assert {request.priority for request in server.scripted.requests} == {1}
    for body, one in list(zip(bodies, found, strict=True))[::23]:
        alone = (await server.client.post("/v1/generate", json=body)).json()
        response = one["response"]
        assert response["steering"] == {name: value for name, value in alone["steering"].items() if name != "record"}
        assert {**response, "id": "", "steering": {}} == {**alone, "id": "", "steering": {}}


@pytest.mark.parametrize("lost", [False, True])
async def test_a_batch_whose_results_cannot_be_stored_for_a_while_goes_on(server: Server, lost: bool) -> None:
    store, failures = server.state.store, iter((True, True))

    async def append(*args: Any) -> None:
        failing = next(failures, False)
        if lost or not failing:
            await store.outputs.append(*args)
        if failing:  # the acknowledgement is lost, or the write
            raise StoreUnavailable("the database does not answer")

    server.state.jobs.store = changed(store, outputs=changed(store.outputs, append=append))
    record = await finished(server, await started(server, {"prompt": "a"}, {"prompt": "b"}))
    assert record["status"] == "succeeded"
    assert [one["index"] for one in await output(server, record)] == [0, 1]
    assert len(server.scripted.requests) == 2, "no line is answered again"


async def test_a_batch_whose_vectors_cannot_be_read_for_a_while_goes_on(start: StartServer) -> None:
    """Its lines are resolved again under a new policy."""
    engine = ScriptedEngine(gate=asyncio.Event())
    server = await start(engine)
    await server.register()
    steering = [{"vector": "sentiment", "strength": 0.1}]
    job = await started(server, *({"prompt": "a", "max_tokens": 2, "steering": steering} for _ in range(40)))
    await until(lambda: engine.stats().running > 0)
    assert (await server.client.put("/v1/policy", json={"mandatory": steering})).status_code == 200
    store, failures = server.state.store, iter((True,))

    def away(found: NamespaceStore) -> NamespaceStore:
        async def get(name: str, version: int | None = None) -> ConceptVector:
            if next(failures, False):
                raise StoreUnavailable("the database does not answer")
            return await found.vectors.get(name, version)

        return replace(found, vectors=changed(found.vectors, get=get))

    server.state.jobs.store = ChangedStore(store, away)
    assert engine.gate is not None
    engine.gate.set()
    record = await finished(server, job)
    assert (record["status"], record["result"]["succeeded"]) == ("succeeded", 40)
    assert next(failures, None) is None, "the vector was read while the database was away"


async def test_a_request_that_fails_has_its_error_in_its_line(server: Server) -> None:
    await server.register()
    broken = {"prompt": "b", "max_tokens": 2, "steering": [{"vector": "sentiment", "strength": NONFINITE_STRENGTH}]}
    job = await started(
        server, {"prompt": "a", "max_tokens": 2}, broken, {"prompt": "a" * 5000}, {"prompt": "c", "max_tokens": 2}
    )
    record = await finished(server, job)
    assert record["result"] == {"requests": 4, "succeeded": 2, "failed": 2}
    found = await output(server, job)
    assert [one.get("error", {}).get("code") for one in found] == [
        None,
        NonfiniteActivations.code,
        "context_length_exceeded",
        None,
    ]


async def test_an_engine_that_dies_ends_the_job(start: StartServer) -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    server = await start(engine)
    job = await started(server, *({"prompt": "a"} for _ in range(3)))
    await until(lambda: engine.stats().running > 0)
    await engine.close()
    assert engine.gate is not None
    engine.gate.set()
    record = await finished(server, job)
    assert (record["status"], record["error"]["code"]) == ("failed", "engine_dead")


async def test_cancelling_frees_every_row_and_keeps_finished_parts(start: StartServer) -> None:
    engine = ScriptedEngine(token_seconds=0.001)
    server = await start(engine)
    job = await started(server, *({"prompt": "a", "max_tokens": 5, "seed": i} for i in range(2000)))

    async def done() -> int:
        return int((await server.client.get(f"/v1/jobs/{job['id']}")).json()["progress"].get("done", 0))

    while await done() < 150:  # noqa: ASYNC110 - progress sets no event
        await asyncio.sleep(0.01)
    cancelled = (await server.client.delete(f"/v1/jobs/{job['id']}")).json()
    assert cancelled["status"] == "cancelled"
    await until(lambda: engine.stats().running == 0)
    found = await output(server, job)
    assert 150 <= len(found) < 2000
    assert len(found) >= cancelled["progress"]["done"]
    indices = [one["index"] for one in found]
    assert indices == sorted(set(indices))


class HeldEngine(ScriptedEngine):
    """An engine that does not answer a request for two tokens before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        if request.sampling.max_tokens == 2:
            await self.may.wait()
        async for event in super().generate(request):
            yield event


HELD_UP = [{"prompt": "a", "max_tokens": 2}, *({"prompt": "a", "max_tokens": 1} for _ in range(600))]


async def test_results_behind_a_slow_line_are_few_and_are_stored_when_the_job_ends(start: StartServer) -> None:
    server = await start(HeldEngine())
    job = await started(server, *HELD_UP)

    async def all_begun() -> bool:
        progress = (await server.client.get(f"/v1/jobs/{job['id']}")).json()["progress"]
        return bool(progress.get("done", 0) >= AHEAD_LINES - 1)

    await holds(all_begun)
    cancelled = (await server.client.delete(f"/v1/jobs/{job['id']}")).json()
    assert (cancelled["status"], cancelled["progress"]["done"]) == ("cancelled", AHEAD_LINES - 1)
    assert [one["index"] for one in await output(server, job)] == list(range(1, AHEAD_LINES))


class LongAnswers(HeldEngine):
    """An engine whose tokens have two megabytes of text."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        async for event in super().generate(request):
            yield replace(event, text=event.text and "a" * (2 << 20))


async def test_lines_are_begun_again_once_a_slow_one_has_ended(start: StartServer) -> None:
    """Behind it wait 16 MB of results, and those of the lines that had begun."""
    engine = LongAnswers()
    server = await start(engine)
    lines = HELD_UP[:40]
    job = await started(server, *lines)
    await until(lambda: len(engine.requests) > (WAITING_BYTES >> 21))
    for _ in range(20):  # answers come on: as many as may begin
        await server.client.get(f"/v1/jobs/{job['id']}")
    assert len(engine.requests) <= BACKGROUND_CONCURRENCY + (WAITING_BYTES >> 21)
    engine.may.set()
    assert (await finished(server, job))["result"]["succeeded"] == len(lines)
    found = await output(server, job)
    assert [one["index"] for one in found] == list(range(len(lines)))
    assert len(engine.requests) == len(lines)


async def test_few_lines_of_a_large_batch_are_tasks_at_once(start: StartServer) -> None:
    gate = asyncio.Event()
    server = await start(ScriptedEngine(gate=gate, length=2))
    lines = 2000
    before = len(asyncio.all_tasks())
    job = await started(server, *[{"prompt": f"number {index}", "max_tokens": 1} for index in range(lines)])
    await until(lambda: server.engine.stats().running > 1)
    assert len(asyncio.all_tasks()) - before < 10 * BACKGROUND_CONCURRENCY
    gate.set()
    found = await finished(server, job)
    assert found["result"]["succeeded"] == lines
    assert [one["index"] for one in await output(server, job)] == list(range(lines))


async def test_live_requests_are_answered_while_a_batch_runs(start: StartServer) -> None:
    """The lines of the batch are so long that it runs on, however late the live request is answered."""
    server = await start(ScriptedEngine(token_seconds=0.001, length=3000, max_running=64))
    job = await started(server, *({"prompt": "a", "max_tokens": 3000} for _ in range(300)))
    await until(lambda: server.engine.stats().running > 0)
    answer = await server.client.post("/v1/generate", json={"prompt": "live", "max_tokens": 2})
    assert answer.status_code == 200
    assert (await server.client.get(f"/v1/jobs/{job['id']}")).json()["status"] == "running"
    assert server.state.rows.reserved == 0
    await server.client.delete(f"/v1/jobs/{job['id']}")


async def test_a_full_queue_is_waited_for(start: StartServer) -> None:
    server = await start(ScriptedEngine(max_running=1, max_waiting=1))
    job = await started(server, *({"prompt": "a", "max_tokens": 2} for _ in range(4)))
    assert (await finished(server, job))["result"]["succeeded"] == 4


async def test_a_new_version_of_a_vector_does_not_change_a_running_batch(start: StartServer) -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    server = await start(engine)
    await server.register()
    steering = [{"vector": "sentiment", "strength": 0.1}]
    job = await started(server, *({"prompt": "a", "max_tokens": 2, "steering": steering} for _ in range(40)))
    await server.register()
    assert engine.gate is not None
    engine.gate.set()
    await finished(server, job)
    applied = {one["response"]["steering"]["applied"][0]["vector"] for one in await output(server, job)}
    assert applied == {"sentiment@1"}


async def test_a_new_policy_holds_for_the_lines_that_are_still_to_be_answered(start: StartServer) -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    server = await start(engine)
    await server.register()
    steering = [{"vector": "sentiment", "strength": 0.1}]
    job = await started(server, *({"prompt": "a", "max_tokens": 2, "steering": steering} for _ in range(40)))
    await until(lambda: engine.stats().running > 0)
    assert (await server.client.put("/v1/policy", json={"mandatory": steering})).status_code == 200
    assert engine.gate is not None
    engine.gate.set()
    await finished(server, job)
    governed = ["mandatory" in one["response"]["steering"] for one in await output(server, job)]
    assert not governed[0]
    assert governed[-1]


async def test_the_lines_of_waiting_batches_take_from_the_memory_of_requests(start: StartServer) -> None:
    server = await start(ScriptedEngine(gate=asyncio.Event()), memory_megabytes=2)
    line = {"prompt": "a" * 1000, "max_tokens": 2}
    lines = [line] * 100
    first = await started(server, *lines)
    held = server.state.memory.reserved
    assert held >= 100_000
    refused = await server.client.post("/v1/generate/batch", content=written(*lines), headers=HEADERS)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
    assert server.state.memory.reserved == held
    await server.client.delete(f"/v1/jobs/{first['id']}")
    await until(lambda: server.state.memory.reserved == server.state.job_memory.reserved == 0)
    await started(server, line)


async def test_each_line_returns_the_memory_of_its_listed_tokens(start: StartServer) -> None:
    """Eight lines of 500 tokens with an alternative need 512 KB each, four times what all requests may have."""
    server = await start(memory_megabytes=1)
    line = {"prompt": "a", "max_tokens": 500, "logprobs": 1}
    job = await started(server, *([line] * 8))
    assert (await finished(server, job))["result"] == {"requests": 8, "succeeded": 8, "failed": 0}
    await until(lambda: server.state.memory.reserved == server.state.job_memory.reserved == 0)


async def test_a_key_over_its_tokens_fails_what_never_fits(start: StartServer) -> None:
    server = await start(api_keys=KEY)
    admin = {"authorization": f"Bearer {KEY}"}
    body = {"name": "a", "scopes": ["generate", "read"], "limits": {"tokens_per_minute": 50}}
    key = (await server.client.post("/v1/keys", json=body, headers=admin)).json()["key"]
    headers = {"authorization": f"Bearer {key}"}
    lines = written({"prompt": "a", "max_tokens": 100}, {"prompt": "a", "max_tokens": 2})
    answer = await server.client.post("/v1/generate/batch", content=lines, headers={**headers, **HEADERS})
    assert answer.status_code == 202
    address = f"/v1/jobs/{answer.json()['id']}"
    await server.client.get(f"{address}/events", headers=headers)
    found = [
        json.loads(line) for line in (await server.client.get(f"{address}/output", headers=headers)).text.splitlines()
    ]
    assert [one.get("error", {}).get("code") for one in found] == ["rate_limited", None]


async def test_the_bytes_that_a_key_may_store_are_those_of_the_moment(start: StartServer) -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    server = await start(engine, api_keys=KEY)
    admin = {"authorization": f"Bearer {KEY}"}
    made = (await server.client.post("/v1/keys", json={"name": "a", "scopes": ["generate"]}, headers=admin)).json()
    headers = {"authorization": f"Bearer {made['key']}", **HEADERS}
    answer = await server.client.post("/v1/generate/batch", content=written({"prompt": "a"}), headers=headers)
    address = f"/v1/jobs/{answer.json()['id']}"
    await until(lambda: engine.stats().running == 1)
    changed = {"limits": {"storage_bytes": 1}}
    assert (await server.client.patch(f"/v1/keys/{made['id']}", json=changed, headers=admin)).status_code == 200
    assert engine.gate is not None
    engine.gate.set()
    await server.client.get(f"{address}/events", headers=admin)
    record = (await server.client.get(address, headers=admin)).json()
    assert (record["status"], record["error"]["code"]) == ("failed", "storage_full")
    nothing = await server.client.get(f"{address}/output", headers=admin)
    assert (nothing.status_code, nothing.content) == (200, b""), "it was never stored, and not deleted"


@pytest.mark.parametrize("line", [b"00\n", b"\n"])
def test_more_lines_than_a_batch_may_have_are_refused_in_little_memory(line: bytes) -> None:
    content = line * 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded):
            parse_lines(content, Settings(max_batch_requests=1000), BatchLine)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


REFUSED: list[tuple[bytes, str, str]] = [
    (b"", "invalid_request", "body"),
    (b"\n \n", "invalid_request", "body"),
    (b'{"prompt": "a"}\n{"prompt"\n', "invalid_request", "line 2"),
    (written({"prompt": "a", "id": "x"}, {"prompt": "a"}, {"prompt": "b", "id": "x"}), "invalid_request", "line 3: id"),
    (written({"prompt": "a"}, {"prompt": "a", "temperature": -1}), "invalid_request", "line 2: temperature"),
    (written({"prompt": "a"}, [1]), "invalid_request", "line 2"),
    (written({"prompt": "a", "url": "x"}), "invalid_request", "line 1: url"),
    (written({"prompt": "a", "stream": True}), "invalid_request", "line 1"),
    (written({"prompt": "a", "n": 9}), "limit_exceeded", "line 1: n"),
    (b'\n{"prompt": "a"}\n\n{"prompt": "a", "n": 9}\n', "limit_exceeded", "line 4: n"),
    (written({"prompt": "a", "steering": [{"vector": "nothing"}]}), "vector_not_found", "line 1: vector"),
    (written(*({"prompt": "a"} for _ in range(6))), "limit_exceeded", "body"),
    (b"\n" * 6 + written({"prompt": "a"}), "limit_exceeded", "body"),
]


@pytest.mark.parametrize(("content", "code", "param"), REFUSED)
async def test_a_batch_with_a_line_that_cannot_be_is_refused_as_a_whole(
    start: StartServer, content: bytes, code: str, param: str
) -> None:
    server = await start(max_batch_requests=5)
    answer = await server.client.post("/v1/generate/batch", content=content, headers=HEADERS)
    error = answer.json()["error"]
    assert (answer.status_code in (400, 404), error["code"], error["param"]) == (True, code, param)
    assert (await server.client.get("/v1/jobs")).json()["data"] == []


async def test_another_media_type_or_job_is_refused(server: Server) -> None:
    answer = await server.client.post("/v1/generate/batch", json={"prompt": "a"})
    assert answer.status_code == 415
    pairs = [{"positive": f"good {i}", "negative": f"bad {i}"} for i in range(4)]
    await server.client.post("/v1/vectors/extract?wait=true", json={"name": "mood", "pairs": pairs})
    (job,) = (await server.client.get("/v1/jobs")).json()["data"]
    answer = await server.client.get(f"/v1/jobs/{job['id']}/output")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert (await server.client.get("/v1/jobs/nothing/output")).status_code == 404


async def test_results_that_were_deleted_are_not_an_empty_output(start: StartServer) -> None:
    engine = ScriptedEngine(gate=asyncio.Event())
    server = await start(engine)
    job = await started(server, {"prompt": "a", "max_tokens": 2})
    await until(lambda: engine.stats().running == 1)
    assert await output(server, job) == []
    assert engine.gate is not None
    engine.gate.set()
    await finished(server, job)
    assert len(await output(server, job)) == 1
    await server.state.store.prune("job_outputs", "2999")
    answer = await server.client.get(f"/v1/jobs/{job['id']}/output")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_the_number_of_steerings_is_bounded(server: Server) -> None:
    await server.register()
    lines = [{"prompt": "a", "steering": [{"vector": "sentiment", "strength": i / 1000}]} for i in range(257)]
    answer = await server.client.post("/v1/generate/batch", content=written(*lines), headers=HEADERS)
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("limit_exceeded", "line 257: steering")


async def test_scores_are_those_of_requests_of_their_own(server: Server) -> None:
    await server.register()
    steering = [{"vector": "sentiment", "strength": 0.5}]
    bodies: list[dict[str, Any]] = [
        {"prompt": "The trip was", "continuations": [" good", " bad"], "steering": steering},
        {"items": [{"prompt": "a", "choices": ["b"]}], "steering": []},
        {"texts": ["abc"]},
    ]
    long = {"texts": ["a" * 5000]}
    content = written(*({**body, "id": f"line {i}"} for i, body in enumerate(bodies)), long)
    answer = await server.client.post("/v1/score/batch", content=content, headers=HEADERS)
    job = answer.json()
    assert (answer.status_code, job["kind"]) == (202, "score_batch")
    record = await finished(server, job)
    assert record["result"] == {"requests": 4, "succeeded": 3, "failed": 1}
    assert record["progress"] == {"done": 4, "total": 4, "message": "scoring", "seconds_left": None}
    *found, failed = await output(server, job)
    assert [(one["index"], one["id"]) for one in found] == [(i, f"line {i}") for i in range(3)]
    assert failed["error"]["code"] == "context_length_exceeded"
    for body, one in zip(bodies, found, strict=True):
        alone = (await server.client.post("/v1/score", json=body)).json()
        assert one["response"] == {name: value for name, value in alone.items() if value is not None}


@pytest.mark.parametrize(
    "line",
    [
        {"texts": ["a"], "stream": True},
        {"prompt": "a"},
        {"texts": ["a"] * 6},
        {"texts": ["a"], "steering": [{"vector": "x"}]},
    ],
)
async def test_a_batch_of_scores_with_a_line_that_cannot_be_is_refused(
    start: StartServer, line: dict[str, Any]
) -> None:
    server = await start(max_texts=5)
    content = written({"texts": ["a"]}, line)
    answer = await server.client.post("/v1/score/batch", content=content, headers=HEADERS)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["message"].startswith("line 2")
