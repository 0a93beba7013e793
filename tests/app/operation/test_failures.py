"""Failures of the server: logged once with their cause and the request's id; a dead or hung engine ends the process."""

import asyncio
import contextlib
import json
import logging
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Never

import httpx2
import pytest

from steering.engine.api import EngineStats
from steering.errors import OutOfMemory, StoreUnavailable
from steering.store.store import NamespaceStore
from tests.app.changed_store import ChangedStore, changed
from tests.app.conftest import Server, StartServer
from tests.fakes import ScriptedEngine
from tests.forked_process import ForkedProcess

ASK = {"prompt": "a", "max_tokens": 2}


def failures(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Returns the entries about failed requests."""
    found = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [entry for entry in found if entry.get("event") == "request_failed"]


async def test_a_failing_store_leaves_a_line_with_its_cause_and_the_id(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def fail(*_: object, **__: object) -> Never:
        cause = sqlite3.OperationalError("disk I/O error")
        raise StoreUnavailable("the database file cannot be used now (SQLITE_IOERR)") from cause

    def failing(found: NamespaceStore) -> NamespaceStore:
        return replace(found, vectors=changed(found.vectors, find=fail))

    working = server.state.jobs.store
    server.state.jobs.store = ChangedStore(working, failing)
    answer = await server.client.get("/v1/vectors", headers={"x-request-id": "my-id"})
    server.state.jobs.store = working
    assert answer.status_code == 503
    (entry,) = failures(caplog)
    assert (entry["code"], entry["request_id"]) == ("store_unavailable", "my-id")
    assert "disk I/O error" in entry["cause"]
    lines = [
        record.msg for record in caplog.records if isinstance(record.msg, dict) and record.msg["event"] == "request"
    ]
    assert lines[-1]["code"] == "store_unavailable"


@pytest.mark.parametrize("stream", [False, True])
async def test_each_request_of_a_failed_pass_is_logged_once(
    start: StartServer, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    caplog.set_level(logging.INFO)
    server = await start(ScriptedEngine(failure=OutOfMemory("the pass did not fit into memory"), fail_at=1))
    ids = ["one", "two"]
    await asyncio.gather(
        *(
            server.client.post("/v1/generate", json={**ASK, "stream": stream}, headers={"x-request-id": name})
            for name in ids
        )
    )
    assert sorted(entry["request_id"] for entry in failures(caplog)) == ids
    assert {entry["code"] for entry in failures(caplog)} == {"out_of_memory"}


async def test_what_a_caller_did_wrong_is_no_failure(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await server.client.post("/v1/generate", json={"prompt": 3})
    await server.client.get("/v1/vectors/nobody")
    assert failures(caplog) == []


class StoppedEngine(ScriptedEngine):
    """As an engine looks after its process was stopped during a turn: that began long ago, although there was no time to end it."""

    def stats(self) -> EngineStats:
        """See Engine.stats."""
        return replace(super().stats(), busy=True, last_turn_age=1000.0)


async def test_a_process_that_was_stopped_goes_on_serving(start: StartServer) -> None:
    server = await start(StoppedEngine(), watchdog_seconds=120.0)
    for path in ("/health/live", "/health/ready"):
        assert (await server.client.get(path)).status_code == 200
    assert (await server.client.post("/v1/generate", json=ASK)).status_code == 200
    assert not server.state.engine_failed.is_set()


@contextlib.contextmanager
def serving(
    folder: Path, module: str = "tests.app.serve_scripted", **options: Any
) -> Iterator[tuple[ForkedProcess, str, Path]]:
    """Runs a server process; by default over a scripted engine."""
    process = ForkedProcess(module, options, log=folder / "server.log")
    try:
        yield process, process.address(), process.log
    finally:
        process.kill()
        process.wait(30)


def until_ready(client: httpx2.Client) -> None:
    """Waits until the engine is there: the port opens before it is."""
    until = time.monotonic() + 120
    while client.get("/health/ready").status_code == 503:
        assert time.monotonic() < until, "the server is not ready"
        time.sleep(0.05)


@pytest.mark.parametrize(("failure", "reason"), [("hung", "has not returned"), ("dead", "has stopped")])
def test_an_engine_that_hangs_or_dies_ends_the_process_with_code_3(tmp_path: Path, failure: str, reason: str) -> None:
    options: dict[str, Any] = {"settings": {"watchdog_seconds": 1.0}, "engine_failure": failure}
    with serving(tmp_path, **options) as (process, address, log):
        with contextlib.suppress(httpx2.TransportError), httpx2.Client(base_url=address, timeout=20) as client:
            until_ready(client)
            answer = client.post("/v1/generate", json=ASK)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "engine_dead"
        assert process.wait(30) == 3
        assert reason in log.read_text()


def test_a_port_that_another_process_has_ends_the_process_with_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        options = {"settings": {"port": other.getsockname()[1]}}
        command = [sys.executable, "-m", "tests.app.serve_scripted", json.dumps(options)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "address already in use" in done.stderr


def test_a_forward_pass_that_never_returns_ends_the_process_with_code_3(tmp_path: Path, tiny_folder: Path) -> None:
    """The heartbeat of the engine's own loop, with a real model and a hook that waits."""
    hang_file = tmp_path / "hang"
    options = {
        "hang_file": str(hang_file),
        "settings": {
            "model": str(tiny_folder),
            "device": "cpu",
            "dtype": "float32",
            "compiled": "false",
            "watchdog_seconds": 10.0,  # the first pass of a process takes seconds where others want its processor
        },
    }
    with serving(tmp_path, "tests.app.serve_hanging", **options) as (process, address, log):
        with httpx2.Client(base_url=address, timeout=60) as client:
            until_ready(client)
            assert client.post("/v1/generate", json=ASK).status_code == 200
            hang_file.touch()
            with contextlib.suppress(httpx2.TransportError):
                assert client.post("/v1/generate", json=ASK).json()["error"]["code"] == "engine_dead"
        assert process.wait(60) == 3
        assert "a forward pass has not returned for 10 s" in log.read_text()
