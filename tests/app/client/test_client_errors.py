"""The client when something is wrong: refusals, failures in the middle, answers that cannot be read, no server at all."""

import json
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from steering.client import ApiError, Client
from steering.schemas.generation import TokenPiece
from tests.app.running import running


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with running() as address, Client(address) as found:
        yield found


def test_a_refusal_carries_status_code_field_and_the_request_of_the_log(client: Client) -> None:
    with pytest.raises(ApiError) as refused:
        client.generate("x", steering=[{"vector": "nobody"}])
    error = refused.value
    assert (error.status, error.code, error.param) == (404, "vector_not_found", "vector")
    assert error.request_id is not None
    assert error.request_id in str(error)
    assert "nobody" in error.message


@pytest.mark.parametrize(
    ("bad", "says"),
    [(math.nan, "expected a finite number, got nan"), ("\ud800", "expected UTF-8 text, got '\\ud800' in it")],
)
def test_what_cannot_be_sent_is_refused_by_the_name_of_its_argument(client: Client, bad: Any, says: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "temperature": lambda: client.generate("x", temperature=bad),
        "steering": lambda: list(client.generate_stream("x", steering=[{"vector": "calm", "strength": bad}])),
        "content": lambda: client.start_batch([{"prompt": "x", "seed": bad}]),
        "tag": lambda: client.list_vectors(tag=bad),
    }
    for param, call in calls.items():
        with pytest.raises(ApiError) as refused:
            call()
        assert (refused.value.code, refused.value.param, refused.value.status) == ("invalid_request", param, 0)
        assert refused.value.message == f"{param}: {says}"


def test_a_refused_stream_raises_before_its_first_event(client: Client) -> None:
    with pytest.raises(ApiError) as refused:
        list(client.generate_stream("x", max_tokens=10**6))
    assert refused.value.code == "context_length_exceeded"


def test_a_failure_in_the_middle_of_a_stream_raises_after_its_pieces() -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        piece = {"choice": 0, "index": 0, "id": 5, "text": "so far"}
        failed = {"error": {"message": "out of range", "type": "x", "param": None, "code": "nonfinite_activations"}}
        return events(("token", piece), ("error", failed))

    with transported(answer) as client:
        stream = client.generate_stream("x")
        first = next(stream)
        assert isinstance(first, TokenPiece)
        with pytest.raises(ApiError) as failed:
            next(stream)
    assert (first.text, failed.value.code) == ("so far", "nonfinite_activations")


def test_a_stream_without_its_end_is_no_answer_and_unknown_events_are_passed_over() -> None:
    piece = {"choice": 0, "index": 0, "id": 5, "text": "a"}
    with (
        transported(lambda _: events(("novelty", {"x": 1}), ("token", piece))) as client,
        pytest.raises(ApiError) as cut,
    ):
        list(client.generate_stream("x"))
    assert cut.value.code == "stream_cut"


@pytest.mark.parametrize("body", [b"<html>502</html>", b"[]", b'{"error": "busy"}', b'{"detail": "x"}'])
def test_an_error_in_another_format_is_reported_by_its_status(body: bytes) -> None:
    """At once, since the wait that it asks for is longer than the client waits."""
    headers = {"Retry-After": "300"}
    with (
        transported(lambda _: httpx2.Response(502, content=body, headers=headers)) as client,
        pytest.raises(ApiError) as reported,
    ):
        client.health()
    assert (reported.value.status, reported.value.code, reported.value.retry_after) == (502, "unreadable_answer", 300.0)


def test_a_response_in_another_format_is_reported() -> None:
    with transported(lambda _: httpx2.Response(200, json={"status": 5})) as client, pytest.raises(ApiError) as reported:
        client.health()
    assert reported.value.code == "unreadable_answer"


def test_a_server_that_does_not_run_is_reported() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(ApiError) as reported:
        client.health()
    assert (reported.value.status, reported.value.code) == (0, "connection_failed")


@pytest.mark.parametrize("address", ["http://127.0.0.1:abc", "http://127.0.0.1:99999", "127.0.0.1", "http://[x"])
def test_an_address_that_is_none_is_reported(address: str) -> None:
    with Client(address) as client, pytest.raises(ApiError) as reported:
        client.health()
    assert (reported.value.status, reported.value.code) == (0, "connection_failed")


@pytest.mark.parametrize("address", ["", "server", "localhost:8000", "127.0.0.1:8000"])
def test_an_address_without_a_scheme_is_not_valid(address: str) -> None:
    with Client(address) as client, pytest.raises(ApiError, match="the address of the server is not valid"):
        client.health()


@pytest.mark.parametrize("result", [{}, {"vector": {"id": 5}}])
def test_a_job_result_in_another_format_is_reported(result: dict[str, object]) -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        times = dict.fromkeys(("created_at", "updated_at"), "2026-01-01T00:00:00Z")
        progress = {"done": 1, "total": 1, "message": ""}
        job = {"id": "a", "kind": "extraction", "status": "succeeded", "progress": progress, "error": None, **times}
        return httpx2.Response(202, json={**job, "result": result})

    with transported(answer) as client, pytest.raises(ApiError) as reported:
        client.extract_vector("mood", concept="sentiment")
    assert reported.value.code == "unreadable_answer"


def test_an_error_can_be_sent_to_another_process() -> None:
    error = ApiError("no", code="overloaded", status=429, param="x", request_id="r", retry_after=1.5, retryable=True)
    error.add_note("seen in a worker")
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (ApiError, str(error), vars(error))


def test_a_number_that_was_not_finite_reads_back_as_nan_and_not_as_an_error() -> None:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"data": [{"id": "a@1", "cosine": {"1": None}, "mean": None}]})

    with transported(answer) as client:
        assert math.isnan(client.similar_vectors("b").data[0].mean)


def test_a_name_never_becomes_another_path() -> None:
    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request.url.raw_path)
        return httpx2.Response(204)

    with transported(answer) as client:
        client.delete_vector("../steering?x=1#y")
    assert asked == [b"/v1/vectors/..%2Fsteering%3Fx%3D1%23y"]


def events(*named: tuple[str, object]) -> httpx2.Response:
    text = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in named)
    return httpx2.Response(200, text=text, headers={"Content-Type": "text/event-stream"})


def transported(answer: Callable[[httpx2.Request], httpx2.Response]) -> Client:
    """A client whose server is a function."""
    return Client("http://server", http=httpx2.Client(transport=httpx2.MockTransport(answer)))
