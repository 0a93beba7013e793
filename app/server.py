"""serve: runs the application until it is told to stop, and stops the way clients can live with."""

import asyncio
import atexit
import contextlib
import os
import socket
import sys
import threading
from types import FrameType
from typing import cast

import structlog
import uvicorn

from app.components import open_database, open_engine
from app.http.protocol import BoundedProtocol
from app.logs import configure_logging
from app.main import create_app
from app.settings import Settings
from app.state import AppState, EngineFactory, StoreFactory
from steering.threads import disable_intra_op_threads

log = structlog.get_logger(__name__)

CLOSING_SECONDS = 1.5
"""What is left after the drain for closing connections, engine and store, before the process is ended outright."""


class DrainingServer(uvicorn.Server):
    """uvicorn, which closes its port first on SIGTERM, with a phase before that: refuse new work, let the old one end.

    The port stays open while it drains, so that a new request is answered 503 and not with a connection error. A
    second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, state: AppState) -> None:
        super().__init__(config)
        self.exit_code = 0
        self._state = state
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Runs until told to stop."""
        self._loop = asyncio.get_running_loop()
        watching = asyncio.create_task(self._stop_if_unloadable())
        try:
            await super().serve(sockets)
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal. uvicorn would note it and raise it again at the end; ours ends with an exit code instead."""
        del sig, frame
        if self._loop is None or not self.started or self._state.draining:
            self.should_exit = True
            self.force_exit = self._state.draining
            return
        self._state.draining = True
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        log.info("draining", seconds=self._state.settings.drain_seconds)
        self._drain = asyncio.create_task(self._drain_and_exit())

    async def _drain_and_exit(self) -> None:
        await self._state.drain()
        self.should_exit = True

    async def _stop_if_unloadable(self) -> None:
        await self._state.loaded.wait()
        if self._state.load_failure is not None:
            self.exit_code = 1
            self.should_exit = True


def serve(
    settings: Settings,
    engine_factory: EngineFactory = open_engine,
    store_factory: StoreFactory = open_database,
) -> int:
    """Serves until SIGTERM or SIGINT and returns the exit code: 0, or 1 when the model could not be loaded."""
    configure_logging(settings.log_level)
    disable_intra_op_threads()  # this thread becomes the event loop's
    app = create_app(settings, engine_factory, store_factory)
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
    )
    server = DrainingServer(config, state)
    state.on_drained = lambda: _end_by(CLOSING_SECONDS)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if state.draining:
        atexit.register(_leave)  # the last to be registered is the first to run
    return server.exit_code


def _end_by(seconds: float) -> None:
    """Ends the process if closing hangs: a thread deep in numerical work cannot be interrupted, and a supervisor waits.

    Nothing is lost: jobs have been marked, streams ended, and the database is safe at every moment.
    """
    timer = threading.Timer(seconds, os._exit, args=(0,))
    timer.daemon = True
    timer.start()


def _leave() -> None:
    """Ends a process that was told to stop without taking the interpreter apart, which takes seconds with torch in it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)
