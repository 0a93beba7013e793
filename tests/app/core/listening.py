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

LITTLE = 1 << 12
"""Bytes of a socket's buffer."""


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
        runner = asyncio.Runner(loop_factory=config.get_loop_factory())  # the loop of a server in operation
        self._thread = threading.Thread(target=self._run, args=(runner,))
        self._loop: asyncio.AbstractEventLoop

    def _run(self, runner: asyncio.Runner) -> None:
        with runner:
            runner.run(self._serve())

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

    def send_little_ahead(self) -> None:
        """Connections from now on take few bytes of the server before their client reads."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LITTLE)

    async def send_unread(self, request: bytes) -> socket.socket:
        """Sends a request on a connection that nothing is read from."""
        unread = socket.socket()
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LITTLE)
        unread.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(unread, ("127.0.0.1", self.port))
        await loop.sock_sendall(unread, request)
        return unread

    async def connect_unread(self, request: bytes) -> socket.socket:
        """Returns as `send_unread`, once bytes of the answer wait."""
        before = set(self.connections)
        unread = await self.send_unread(request)
        await until(lambda: any(one.flow.write_paused for one in self.connections - before))
        return unread

    def act(self, what: Callable[[], None]) -> None:
        """Calls something in the server's event loop before it reads what is sent from now on."""
        self._loop.call_soon_threadsafe(what)

    async def turn(self) -> None:
        """Returns once the server's event loop has called what was ready."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop))

    def quiet(self) -> bool:
        """Returns whether nothing runs or waits and no row or byte is in use."""
        stats = self.engine.stats()
        counts = (stats.running, stats.waiting, self.state.rows.reserved, self.state.memory.reserved)
        return (*counts, self.state.in_flight) == (0, 0, 0, 0, 0)
