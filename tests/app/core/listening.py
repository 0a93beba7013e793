"""A server on a real socket in a thread of its own, for tests of connections."""

import asyncio
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn

from app.core.protocol import BoundedProtocol
from app.core.settings import Settings
from app.main import create_app
from app.server import DrainingServer
from app.state import AppState
from steering.engine.api import Engine
from tests.memory_store import memory_store
from tests.polling import until


class Listening:
    """A server in a thread of its own, on a free port."""

    def __init__(self, engine: Engine, protocol: type[BoundedProtocol] = BoundedProtocol, **settings: Any) -> None:
        self.engine = engine
        self.app = create_app(Settings(**settings), lambda _: engine, memory_store)
        self.state: AppState = self.app.state.steering
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.app, http=protocol, log_config=None, server_header=False, timeout_graceful_shutdown=1
        )
        self._server = DrainingServer(config, self.state)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._loop: asyncio.AbstractEventLoop

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._server.serve([self._socket])

    async def __aenter__(self) -> "Listening":
        self._thread.start()
        await until(lambda: self._server.started and self.state.loaded.is_set())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.should_exit = True
        await asyncio.to_thread(self._thread.join, 20)
        assert not self._thread.is_alive()

    @property
    def connections(self) -> set[Any]:
        """The connections that the server has open."""
        return self._server.server_state.connections

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Opens a connection."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    def act(self, what: Callable[[], None]) -> None:
        """Calls something in the server's event loop before it reads what is sent from now on."""
        self._loop.call_soon_threadsafe(what)

    def quiet(self) -> bool:
        """Returns whether nothing runs or waits and no row or byte is in use."""
        stats = self.engine.stats()
        counts = (stats.running, stats.waiting, self.state.rows.reserved, self.state.memory.reserved)
        return (*counts, self.state.in_flight) == (0, 0, 0, 0, 0)
