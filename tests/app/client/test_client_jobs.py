"""Methods that wait for a job follow it: it may take longer than a request may, and a caller who leaves cancels it."""

import asyncio
import json
import time
from typing import Any

import httpx2
import pytest

from steering.client import NO_RETRIES, ApiError, AsyncClient, Client, ProgressBar
from steering.engine.api import Prompt
from steering.schemas.resources import JobAnswer
from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine
from tests.polling import holds, until
from tests.scripted_model import ScriptedTokenizer

PAIRS = [{"positive": f"good day {i}", "negative": f"bad day {i}"} for i in range(12)]
REQUEST_SECONDS = 1.0
"""Longest life of a request; one that waits for a job ends when half of it is over."""


def connected(server: Server, seen: list[JobAnswer]) -> AsyncClient:
    return AsyncClient(str(server.client.base_url), http=server.client, on_progress=seen.append)


async def status_of(server: Server, job: str) -> str:
    return str((await server.client.get(f"/v1/jobs/{job}")).json()["status"])


async def test_a_job_may_take_longer_than_a_request(start: StartServer) -> None:
    gate = asyncio.Event()
    server = await start(ScriptedEngine(gate=gate), request_seconds=REQUEST_SECONDS)
    asyncio.get_running_loop().call_later(1.5 * REQUEST_SECONDS, gate.set)
    seen: list[JobAnswer] = []
    vector = await connected(server, seen).extract_vector("mood", pairs=PAIRS)
    assert vector.id == "mood@1"
    assert (seen[0].status, seen[-1].status) == ("queued", "succeeded")
    assert max(one.progress.done for one in seen) == seen[-1].progress.total > 0


class SlowTokenizer(ScriptedTokenizer):
    """Takes so many seconds for the first text, which is encoded in a thread before the job begins."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def encode(self, prompt: Prompt, most: int | None = None) -> tuple[int, ...]:
        """See Tokenizer.encode."""
        seconds, self._seconds = self._seconds, 0.0
        time.sleep(seconds)
        return super().encode(prompt, most)


@pytest.mark.parametrize(("request_seconds", "preparing"), [(REQUEST_SECONDS, 0.0), (3.0, 1.8)])
async def test_a_request_that_waits_too_long_names_the_job_which_goes_on(
    start: StartServer, request_seconds: float, preparing: float
) -> None:
    """Its time begins before the job is prepared."""
    gate = asyncio.Event()
    engine = ScriptedEngine(gate=gate)
    engine.tokenizer = SlowTokenizer(preparing)
    server = await start(engine, request_seconds=request_seconds)
    answer = await server.client.post("/v1/vectors/extract?wait=true", json={"name": "mood", "pairs": PAIRS})
    (job,) = (await server.state.store.shared.jobs.find()).items
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "request_timed_out")
    assert answer.headers["x-should-retry"] == "false"
    assert job.id in answer.json()["error"]["message"]
    gate.set()

    async def succeeded() -> bool:
        status = (await server.state.store.shared.jobs.get(job.id)).status
        assert status in ("queued", "running", "succeeded")
        return status == "succeeded"

    await holds(succeeded)


async def test_a_caller_who_is_cancelled_cancels_the_job(start: StartServer) -> None:
    server = await start(ScriptedEngine(gate=asyncio.Event()))
    seen: list[JobAnswer] = []
    waiting = asyncio.ensure_future(connected(server, seen).extract_vector("mood", pairs=PAIRS))
    await until(lambda: any(one.status == "running" for one in seen))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await status_of(server, seen[0].id) == "cancelled"


async def test_a_job_that_fails_or_is_cancelled_raises_what_ended_it(start: StartServer) -> None:
    with pytest.raises(ApiError, match="needs at least 4"):
        await connected(await start(), []).extract_vector("mood", pairs=PAIRS[:1], method="probe", holdout=0)
    server = await start(ScriptedEngine(gate=asyncio.Event()))
    seen: list[JobAnswer] = []
    client = connected(server, seen)
    waiting = asyncio.ensure_future(client.extract_vector("mood", pairs=PAIRS))
    await until(lambda: bool(seen) and seen[-1].status == "running")
    await server.client.delete(f"/v1/jobs/{seen[-1].id}")
    with pytest.raises(ApiError) as cancelled:
        await waiting
    assert cancelled.value.code == "job_cancelled"


def test_an_interrupt_cancels_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(f"{request.method} {request.url.path}")
        job = {"id": "job-1", "kind": "extract", "status": "running", "error": None, "result": None}
        progress = {"done": len(sent), "total": 9, "message": "reading texts"}
        return httpx2.Response(
            202, content=json.dumps({**job, "progress": progress, "created_at": "", "updated_at": ""})
        )

    bar = ProgressBar()

    def interrupted(job: JobAnswer) -> None:
        bar(job)
        if job.progress.done == 3:
            raise KeyboardInterrupt

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with Client(http=http, on_progress=interrupted) as client, pytest.raises(KeyboardInterrupt):
        client.report("mood")
    assert sent == ["POST /v1/evaluations", "GET /v1/jobs/job-1", "GET /v1/jobs/job-1", "DELETE /v1/jobs/job-1"]
    assert "extract: reading texts" in capsys.readouterr().err


async def test_a_wait_whose_server_is_lost_names_the_job() -> None:
    """It may go on, and the caller asks for its result later."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.method == "GET":
            raise httpx2.ConnectError("refused")
        job: dict[str, Any] = {"id": "job-1", "kind": "report", "status": "running", "error": None, "result": None}
        made = {**job, "progress": {}, "created_at": "", "updated_at": ""}
        return httpx2.Response(202, content=json.dumps(made))

    transport = httpx2.MockTransport(answer)
    with (
        Client(http=httpx2.Client(transport=transport), retries=NO_RETRIES) as client,
        pytest.raises(ApiError, match="job-1 may go on") as lost,
    ):
        client.report("mood")
    assert lost.value.code == "connection_failed"
    async with AsyncClient(http=httpx2.AsyncClient(transport=transport), retries=NO_RETRIES) as waiting:
        with pytest.raises(ApiError, match="job-1 may go on"):
            await waiting.report("mood")
