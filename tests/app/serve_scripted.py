"""A server process without a model, for the tests of signals: python -m tests.app.serve_scripted <options as JSON>."""

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.core.settings import Settings
from app.server import serve
from steering.engine.api import EngineStats
from steering.errors import ModelLoadFailed
from tests.fakes import ScriptedEngine
from tests.memory_store import memory_store


class FileGatedEngine(ScriptedEngine):
    """A ScriptedEngine whose answers go on after their first token once a file is there, made by a test in another process."""

    def __init__(self, gate_file: Path, **options: Any) -> None:
        super().__init__(**options)
        self._gate_file = gate_file

    async def _pause(self, index: int) -> None:
        await super()._pause(index)
        while index > 0 and not self._gate_file.exists():  # noqa: ASYNC110 - a file sets no event
            await asyncio.sleep(0.01)


class FailingEngine(ScriptedEngine):
    """A ScriptedEngine that hangs or dies with its first request: its answer never goes on."""

    def __init__(self, failure: str, **options: Any) -> None:
        super().__init__(gate=asyncio.Event(), **options)
        self._failure = failure
        self._since: float | None = None

    async def _pause(self, index: int) -> None:
        self._since = self._since or time.monotonic()
        await super()._pause(index)

    def stats(self) -> EngineStats:
        """See Engine.stats."""
        stats = super().stats()
        if self._since is None:
            return stats
        if self._failure == "dead":
            return replace(stats, alive=False)
        return replace(stats, busy=True, last_turn_age=time.monotonic() - self._since)


def main(options: dict[str, Any]) -> int:
    """Serves a ScriptedEngine until a signal. load_seconds: how long "loading" blocks; broken: whether it fails;
    gate_file: what answers wait for after their first token; engine_failure: "hung" or "dead" at the first request."""
    settings = Settings(**{"port": 0, **options.get("settings", {})})

    def engine(_: Settings) -> ScriptedEngine:
        time.sleep(options.get("load_seconds", 0))
        if options.get("broken"):
            raise ModelLoadFailed("there is no such model")
        scripted = options.get("engine", {})
        if "engine_failure" in options:
            return FailingEngine(options["engine_failure"], **scripted)
        gate = options.get("gate_file")
        return ScriptedEngine(**scripted) if gate is None else FileGatedEngine(Path(gate), **scripted)

    return serve(settings, engine, memory_store)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
