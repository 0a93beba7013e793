"""A real server is killed, stopped, or loses its clients: stored data is complete, and cancelled work ends."""

import asyncio
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from itertools import islice
from pathlib import Path
from threading import Barrier
from typing import Any

import httpx2
import pytest

from steering.client import NO_RETRIES, ApiError, AsyncClient, Client
from steering.schemas.generation import GenerateAnswer
from tests.embedded.material import asked, pair_words
from tests.embedded.server_process import ServerProcess
from tests.polling import until

pytestmark = pytest.mark.embedded

LAYER = "14"
STEPS, RUNNING, WAITING = (f"steering_engine_{name}" for name in ("steps_total", "running", "waiting"))


@pytest.fixture(scope="module")
def server(model_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of these tests' own, which they kill and start again. In float32, where an answer is the same whoever else is in
    the batch and whatever was in the cache. It drains for as long as short streams take on a slow machine."""
    folder = tmp_path_factory.mktemp("lifecycle")
    with ServerProcess(folder, model_cache, dtype="float32", compiled="false", drain_seconds="8") as started:
        pairs = pair_words("sentiment")[:12]
        started.client.extract_vector("sentiment", pairs=pairs, layers=[int(LAYER)], holdout=0)
        yield started


def written(client: Client, **steering: Any) -> str:
    answer = client.generate(messages=asked("How was your weekend?"), max_tokens=16, temperature=0.0, **steering)
    return answer.choices[0].text


def measured(url: str) -> dict[str, float]:
    """The numbers of /metrics at one moment."""
    lines = httpx2.get(f"{url}/metrics", timeout=60).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if name[0] != "#"}


def quiet(url: str) -> bool:
    """Whether no row runs or waits, and no request is under way but the one that asks."""
    now = measured(url)
    return (now[RUNNING], now[WAITING], now["steering_http_requests_in_flight"]) == (0, 0, 1)


async def test_50_streams_dropped_at_random_leave_nothing_behind(server: ServerProcess) -> None:
    steering = [{"vector": "sentiment", "strength": 0.8}]
    expected = written(server.client, steering=steering)
    rng = random.Random(5)
    counts = [rng.randrange(0, 12) for _ in range(50)]
    before = measured(server.url)[STEPS]

    async def leave(client: AsyncClient, number: int, count: int) -> None:
        stream = client.generate_stream(
            messages=asked(f"Tell me about the number {number}."),
            steering=[{"vector": "sentiment", "strength": number / 50 - 0.5}],
            max_tokens=400,
        )
        async with aclosing(stream):
            for _ in range(count):
                await anext(stream, None)  # an answer may sample the end of its text before
            await asyncio.sleep(0 if count else number / 100)

    async with AsyncClient(server.url) as client:
        await asyncio.gather(*(leave(client, number, count) for number, count in enumerate(counts)))
    left = measured(server.url)[STEPS]
    await until(lambda: quiet(server.url), 60)
    after = measured(server.url)[STEPS]
    assert after - left <= 25, "rows are computed after their clients have left"
    assert after - before < 200, "nobody wrote its 400 tokens"
    assert written(server.client, steering=steering) == expected


def test_what_is_kept_outlives_a_kill(server: ServerProcess) -> None:
    client = server.client
    client.put_profile("cheerful", [{"vector": "sentiment@1", "strength": 0.8}], description="sees the good")
    client.set_default_steering([{"vector": "sentiment", "strength": -0.8}])
    vector, file = client.get_vector("sentiment"), client.export_vector("sentiment")
    answers = [written(client), written(client, steering={"profile": "cheerful"}), written(client, steering=[])]
    pairs = [
        {**pair, "positive": f"{number}. {pair['positive']}"} for number in range(8) for pair in pair_words("refusal")
    ]
    job = client.start_extraction("never-made", pairs=pairs)
    stream = client.job_events(job.id)
    assert any(event.progress.done > 0 for event in stream)
    server.kill()
    server.start()
    client = server.client
    assert client.get_vector("sentiment") == vector
    assert client.export_vector("sentiment") == file
    assert client.get_profile("cheerful").interventions[0].strength == 0.8
    interventions = client.get_default_steering().interventions
    assert interventions is not None
    assert interventions[0].strength == -0.8
    again = [written(client), written(client, steering={"profile": "cheerful"}), written(client, steering=[])]
    assert again == answers
    assert len(set(answers)) == 3
    for _ in client.job_events(job.id):  # until the lease of the killed process has ended
        pass
    cut = client.get_job(job.id)
    assert cut.error is not None
    assert (cut.status, cut.error.code) == ("failed", "interrupted")
    with pytest.raises(ApiError, match="never-made"):
        client.get_vector("never-made")
    client.clear_default_steering()


def test_a_stop_lets_streams_end_and_cuts_what_is_too_long(server: ServerProcess) -> None:
    """Short streams finish, a long stream gets an error, a new request is rejected, and the process exits."""
    under_way = Barrier(7)

    def follow(count: int) -> str:
        stream = server.client.generate_stream(
            messages=asked("Write a very long story about the sea."), max_tokens=count, temperature=0.0,
            steering=[{"vector": "sentiment", "strength": 0.3}],
        )  # fmt: skip
        assert len(list(islice(stream, 2))) == 2
        under_way.wait(60)
        try:
            *_, last = stream
        except ApiError as error:
            return error.code
        assert isinstance(last, GenerateAnswer)
        return f"{last.usage.completion_tokens} tokens"

    with ThreadPoolExecutor(6) as threads:
        streams = [threads.submit(follow, count) for count in (4, 5, 6, 7, 8, 8000)]
        under_way.wait(60)
        server.terminate()
        refusal = refused(server.url)
        endings = [stream.result() for stream in streams]
    assert endings[:5] == [f"{count} tokens" for count in (4, 5, 6, 7, 8)]
    assert endings[5] == "draining"
    assert (refusal.status, refusal.code) == (503, "draining")
    assert refusal.retry_after is not None
    assert server.process.wait(timeout=60) == 0


def refused(url: str) -> ApiError:
    """Returns the error of a new request after the stop: of the first that is refused, since the server is gone soon."""
    with Client(url, retries=NO_RETRIES) as client:
        while True:
            try:
                client.generate("Hello", max_tokens=1)
            except ApiError as error:
                return error
