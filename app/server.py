"""serve: runs the application until a signal, then drains: running requests end before the process does."""

import asyncio
import atexit
import contextlib
import os
import resource
import socket
import sys
import threading
from concurrent.futures import Future
from types import FrameType
from typing import cast

import structlog
import uvicorn

from app.core.components import open_database, open_engine
from app.core.protocol import BoundedProtocol
from app.core.settings import Settings
from app.core.telemetry import configure_logging, open_traces
from app.main import create_app
from app.state import AppState, EngineFactory, StoreFactory
from steering.threads import disable_intra_op_threads

log = structlog.get_logger(__name__)

SPARE_DESCRIPTORS = 256
"""File descriptors for the database, the model, libraries and child processes."""
START_FAILED = 1
ENGINE_FAILED = 3
"""Exit codes, so that a supervisor restarts the server: it could not start (model, port), or the engine died or hangs."""
KEEP_ALIVE_SECONDS = 10
"""After which an idle connection is closed: longer than a proxy keeps one (deploy/Caddyfile: 5 s), or a request meets the closing."""
CLOSING_SECONDS = 1.5
"""Time after the drain for closing connections, engine and store, before the process exits unconditionally."""


class DrainingServer(uvicorn.Server):
    """uvicorn with a drain phase: refuse new work and let running requests end before the port is closed. The port
    stays open while it drains, so that a new request is answered 503 and not with a connection error. A second signal
    ends it at once."""

    def __init__(self, config: uvicorn.Config, state: AppState) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._state = state
        state.open_connections = lambda: len(self.server_state.connections)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: Future[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Runs until it is stopped."""
        self._loop = asyncio.get_running_loop()
        watching = asyncio.create_task(self._stop_on_failure())
        try:
            await super().serve(sockets)
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal. uvicorn would raise it again at the end; here the process ends with an exit code."""
        del sig, frame
        if self._loop is None or not self.started or self._state.stopping:
            self.should_exit = True
            self.force_exit = self._state.stopping
            return
        self._state.stopping = True
        self._state.draining = not self._state.settings.drain_delay_seconds
        self._drain = asyncio.run_coroutine_threadsafe(self._drain_and_exit(), self._loop)

    async def _drain_and_exit(self) -> None:
        """Lets a load balancer notice that the server is not ready, while it still accepts requests; then drains."""
        settings = self._state.settings
        log.info("draining", seconds=settings.drain_seconds, delay=settings.drain_delay_seconds)
        await asyncio.sleep(settings.drain_delay_seconds)
        try:
            await self._state.drain()
        except Exception as error:
            log.exception("drain_failed", error=type(error).__name__)
        self.should_exit = True

    async def _stop_on_failure(self) -> None:
        """Ends the process with a non-zero code when the model cannot be loaded, or the engine dies or hangs."""
        await self._state.loaded.wait()
        code = START_FAILED
        if self._state.load_failure is None:
            await self._state.engine_failed.wait()
            self._state.draining = True
            code = ENGINE_FAILED
            _end_by(CLOSING_SECONDS, code)  # a hung pass cannot be interrupted, so closing the engine may never return
        self.exit_code, self.should_exit = code, True


def serve(
    settings: Settings, engine_factory: EngineFactory = open_engine, store_factory: StoreFactory = open_database
) -> int:
    """Serves until SIGTERM or SIGINT and returns the exit code: 0, START_FAILED or ENGINE_FAILED."""
    configure_logging(settings.log_level)
    _allow_connections(settings.max_connections)
    disable_intra_op_threads()  # this thread runs the event loop
    traces = open_traces() if settings.traces else None
    app = create_app(settings, engine_factory, store_factory, traces)
    if settings.openapi:
        app.openapi()  # before requests come: it takes a second, and two threads may not prepare FastAPI's routes at once
    state = cast(AppState, app.state.steering)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    BoundedProtocol.max_connections, BoundedProtocol.stall_seconds = settings.max_connections, settings.stall_seconds
    server = DrainingServer(config, state)
    state.on_drained = lambda: _end_by(CLOSING_SECONDS, 0)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run()
    except SystemExit:  # of uvicorn, where the port cannot be opened; its code would be that of a dead engine
        server.exit_code = START_FAILED
    if traces is not None:
        traces.shutdown()  # sends what is left
    if state.draining:
        atexit.register(_leave, server.exit_code)  # registered last, so it runs first
    return server.exit_code


def _allow_connections(count: int) -> None:
    """Raises the process limit of open files, so that connections cannot use up the descriptors of everything else."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _end_by(seconds: float, code: int) -> None:
    """Ends the process if closing hangs: a thread in numerical code cannot be interrupted, and a supervisor waits.
    Nothing is lost: jobs have been marked, streams have ended, and every database transaction is atomic."""
    timer = threading.Timer(seconds, os._exit, args=(code,))
    timer.daemon = True
    timer.start()


def _leave(code: int) -> None:
    """Ends a stopped process without interpreter shutdown, which takes seconds with torch loaded."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
