"""A defect in the drain does not keep the process."""

import asyncio
import signal

from tests.app.core.listening import Listening
from tests.fakes import ScriptedEngine


async def test_a_drain_that_fails_ends_the_server() -> None:
    def fail() -> None:
        raise RuntimeError("planted")

    async with Listening(ScriptedEngine()) as server:
        server.state.on_drained = fail
        server.act(lambda: server._server.handle_exit(signal.SIGTERM, None))
        await asyncio.to_thread(server._thread.join, 20)
        assert not server._thread.is_alive()
