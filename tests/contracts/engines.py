"""The engines that contract tests run over: each of the table with one tiny model, and the scripted one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from steering.engine import installed_engines, open_engine
from steering.engine.api import Engine
from steering.engine.options import EngineLimits, EngineOptions
from tests.fakes import ScriptedEngine

SCRIPTED = "scripted"
CONTRACT_ENGINES = (*installed_engines(), SCRIPTED)
SHARED = "vllm"
"""Starting it takes half a minute: tests share one, and open another only after a test has closed it."""

EngineT = TypeVar("EngineT", bound=Engine)


class ContractEngines:
    """Opens engines over a model folder. `shared`: the engines that tests share, as far as one has opened them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shared: list[Engine] = []

    @asynccontextmanager
    async def opened(self, name: str) -> AsyncIterator[Engine]:
        """Yields an engine of CONTRACT_ENGINES, and closes it unless it is shared."""
        if name == SHARED:
            if not (self.shared and self.shared[-1].stats().alive):
                self.shared.append(self._open(name))
            yield self.shared[-1]
            return
        engine = ScriptedEngine() if name == SCRIPTED else self._open(name)
        try:
            yield engine
        finally:
            await engine.close()

    def _open(self, name: str) -> Engine:
        limits = EngineLimits(max_running=16, max_background=8, cache_bytes=64 << 20)
        options = EngineOptions(
            str(self.folder), self.folder, device="cpu", dtype="float32", compiled=False, limits=limits
        )
        return open_engine(name, options)


def unclosed(engine: EngineT) -> EngineT:
    """Returns the same engine for the server of one test, which closes it as it ends: to this one nothing happens."""

    async def close(_: object) -> None:
        pass

    view: EngineT = object.__new__(type("Unclosed", (type(engine),), {"close": close}))
    view.__dict__ = engine.__dict__
    return view
