"""The client repeats requests that may succeed later, waits as long as the server says, and repeats nothing else."""

import asyncio
import json
import time
from collections.abc import Callable

import httpx2
import pytest

from steering.client import NO_RETRIES, ApiError, AsyncClient, Client, Retries
from steering.schemas.generation import TokenPiece

FAST = Retries(attempts=3, first_wait=0.001)
VERSION = {"name": "steering-server", "version": "1"}


def failure(status: int, code: str, **headers: str) -> httpx2.Response:
    error = {"message": "no", "type": "t", "param": None, "code": code}
    return httpx2.Response(
        status, json={"error": error}, headers={key.replace("_", "-"): headers[key] for key in headers}
    )


class Server:
    """Answers with the given responses in order, and counts requests."""

    def __init__(self, *responses: httpx2.Response | Exception) -> None:
        self.responses, self.requests = list(responses), 0

    def __call__(self, _: httpx2.Request) -> httpx2.Response:
        self.requests += 1
        response = self.responses.pop(0)
        if isinstance(response, Exception):
            raise response
        return response


def sync_client(server: Callable[[httpx2.Request], httpx2.Response], retries: Retries = FAST) -> Client:
    return Client(http=httpx2.Client(transport=httpx2.MockTransport(server)), retries=retries)


@pytest.mark.parametrize(
    "first",
    [
        failure(429, "overloaded"),
        failure(503, "not_ready", retry_after="0"),
        httpx2.ConnectError("refused"),
        httpx2.ReadError("lost"),
    ],
)
def test_a_failure_that_passes_is_repeated(first: httpx2.Response | Exception) -> None:
    server = Server(first, first, httpx2.Response(200, json=VERSION))
    with sync_client(server) as client:
        assert client.version().version == "1"
    assert server.requests == 3


@pytest.mark.parametrize(
    "first",
    [
        failure(400, "invalid_request"),
        failure(500, "internal_error"),
        failure(503, "engine_dead", x_should_retry="false"),
        failure(429, "overloaded", retry_after="3600"),
        httpx2.ReadTimeout("no answer in time"),
    ],
)
def test_other_failures_are_raised_at_once(first: httpx2.Response | Exception) -> None:
    server = Server(first, httpx2.Response(200, json=VERSION))
    with sync_client(server) as client, pytest.raises(ApiError):
        client.version()
    assert server.requests == 1


@pytest.mark.parametrize("status", [502, 504])
def test_a_request_that_a_proxy_may_have_passed_on_is_repeated_only_as_get(status: int) -> None:
    """A server that died may have carried it out: a second POST would create a second key."""
    server = Server(httpx2.Response(status), httpx2.Response(200, json=VERSION))
    with sync_client(server) as client:
        assert client.version().version == "1"
    server = Server(*[httpx2.Response(status)] * 3)
    with sync_client(server) as client, pytest.raises(ApiError) as reported:
        client.create_key("x", ["read"])
    assert (reported.value.status, reported.value.retryable, server.requests) == (status, False, 1)


def test_a_post_and_a_stream_are_not_sent_again_where_the_connection_was_lost() -> None:
    server = Server(httpx2.ReadError("lost"), httpx2.Response(200, json={"tokens": [1], "count": 1}))
    with sync_client(server) as client, pytest.raises(ApiError, match="lost"):
        client.tokenize("a")
    assert server.requests == 1
    with sync_client(Server(httpx2.ReadError("lost"), events())) as client, pytest.raises(ApiError, match="lost"):
        next(client.job_events("job"))


def test_the_last_attempt_raises_and_retries_can_be_switched_off() -> None:
    for retries, attempts in ((FAST, 3), (NO_RETRIES, 1)):
        server = Server(*[failure(429, "overloaded")] * 5)
        with sync_client(server, retries) as client, pytest.raises(ApiError, match="no"):
            client.version()
        assert server.requests == attempts


def test_the_wait_is_that_of_the_server_and_otherwise_doubles() -> None:
    policy = Retries(attempts=9, first_wait=1.0)
    assert policy.wait_after(ApiError("x", code="c", retryable=True, retry_after=7.5), 1) == 7.5
    waits = [policy.wait_after(ApiError("x", code="c", retryable=True), attempt) for attempt in (1, 2, 3)]
    for wait, least in zip(waits, (1.0, 2.0, 4.0), strict=True):
        assert wait is not None
        assert least <= wait <= 1.25 * least
    assert policy.wait_after(ApiError("x", code="c"), 1) is None


def events(*named: tuple[str, object]) -> httpx2.Response:
    text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in named)
    return httpx2.Response(200, text=text, headers={"content-type": "text/event-stream"})


PIECE = {"choice": 0, "index": 0, "id": 5, "text": "a"}
BROKEN = {"error": {"message": "late", "type": "t", "param": None, "code": "overloaded"}}


def test_a_rejected_stream_is_repeated_but_a_begun_one_is_not() -> None:
    server = Server(failure(429, "overloaded"), events(("token", PIECE), ("error", BROKEN)))
    with sync_client(server) as client:
        stream = client.generate_stream("x")
        assert isinstance(next(stream), TokenPiece)
        with pytest.raises(ApiError, match="late"):
            next(stream)
    assert server.requests == 2


async def test_the_async_client_repeats_and_waits_without_blocking_the_loop() -> None:
    server = Server(failure(429, "overloaded", retry_after="0.2"), httpx2.Response(200, json=VERSION))
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(server))
    async with AsyncClient(http=http) as client:
        start = time.monotonic()
        pending = asyncio.ensure_future(client.version())
        await asyncio.sleep(0.01)
        assert not pending.done()
        assert (await pending).version == "1"
        assert time.monotonic() - start >= 0.2
    server = Server(failure(503, "draining", retry_after="0"), events(("token", PIECE), ("error", BROKEN)))
    async with AsyncClient(http=httpx2.AsyncClient(transport=httpx2.MockTransport(server))) as client:
        stream = client.generate_stream("x")
        assert isinstance(await anext(stream), TokenPiece)
        with pytest.raises(ApiError, match="late"):
            await anext(stream)
