"""A change that is committed after its request was stopped has its entry in the audit log."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from steering.errors import StoreUnavailable
from steering.store.governance import Documents
from tests.app.conftest import Server, StartServer
from tests.polling import until

POLICY = {"limits": {"own_steering": "none"}}


class SlowDocuments(Documents):
    """Documents that are written once `opened`. As in a database, a write runs to its end when its caller is cancelled."""

    def __init__(self, documents: Documents) -> None:
        super().__init__(documents.database)
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        self.failure: Exception | None = None
        self.writing: asyncio.Future[None]

    async def put(self, name: str, content: Mapping[str, Any] | None) -> None:
        """See Documents.put."""
        self.writing = asyncio.ensure_future(self._put(name, content))
        await asyncio.shield(self.writing)

    async def _put(self, name: str, content: Mapping[str, Any] | None) -> None:
        self.reached.set()
        await self.opened.wait()
        await super().put(name, content)
        if self.failure is not None:
            raise self.failure


def slowed(server: Server) -> SlowDocuments:
    """Makes the documents of a server slow."""
    documents = SlowDocuments(server.state.store.documents)
    server.state.store.documents = documents
    return documents


async def entries(server: Server) -> list[tuple[str, int]]:
    """Actions and statuses of the audit log."""
    return [(one.action, one.status) for one in (await server.state.store.audit.find())[0]]


async def test_a_change_that_the_end_of_the_drain_cuts_off(start: StartServer) -> None:
    server = await start(drain_seconds=0.01)
    documents = slowed(server)
    asking = asyncio.create_task(server.client.put("/v1/policy", json=POLICY))
    await documents.reached.wait()
    await server.state.drain()
    answer = await asking
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
    documents.opened.set()
    await documents.writing
    assert await documents.get("policy") is not None
    assert await entries(server) == [("PUT /v1/policy", 503)]


async def test_a_change_that_takes_longer_than_a_request_may(start: StartServer) -> None:
    server = await start(request_seconds=0.2)
    documents = slowed(server)
    answer = await server.client.put("/v1/policy", json=POLICY)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "request_timed_out")
    documents.opened.set()
    assert await entries(server) == [("PUT /v1/policy", 503)]


@pytest.mark.parametrize(("failure", "status"), [(StoreUnavailable("away"), 503), (RuntimeError("away"), 500)])
async def test_a_request_that_fails_after_its_change(server: Server, failure: Exception, status: int) -> None:
    documents = slowed(server)
    documents.failure = failure
    documents.opened.set()
    assert (await server.client.put("/v1/policy", json=POLICY)).status_code == status
    assert await entries(server) == [("PUT /v1/policy", status)]


async def test_what_is_refused_changes_nothing_and_has_no_entry(server: Server) -> None:
    unknown = {"mandatory": [{"vector": "nobody", "strength": 0.1}]}
    assert (await server.client.put("/v1/policy", json=unknown)).status_code == 404
    assert (await server.client.put("/v1/policy", json={"limits": 1})).status_code == 400
    assert (await server.client.delete("/v1/vectors/nobody")).status_code == 404
    assert await entries(server) == []


async def test_a_cancelled_job_may_have_changed_something(server: Server) -> None:
    engine = server.scripted
    engine.gate = asyncio.Event()
    pairs = [{"positive": f"good day {i}", "negative": f"bad day {i}"} for i in range(12)]
    body = {"name": "mood", "pairs": pairs}
    waiting = asyncio.create_task(server.client.post("/v1/vectors/extract?wait=true", json=body))
    await until(lambda: server.state.jobs.counts()["running"] == 1)
    (job,) = (await server.client.get("/v1/jobs")).json()["data"]
    await server.client.delete(f"/v1/jobs/{job['id']}")
    answer = await waiting
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "job_cancelled")
    assert ("POST /v1/vectors/extract", 409) in await entries(server)
