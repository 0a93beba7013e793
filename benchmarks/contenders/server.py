"""Our server as `steer serve` runs it. The engine is compiled before the server is ready."""

import asyncio
import json
import sys
from pathlib import Path

from app.core.settings import Settings
from app.server import serve
from benchmarks.contenders.open_engine import open_endless, until_compiled
from steering.engine.api import Engine

if __name__ == "__main__":
    options = json.loads(sys.argv[1])

    def ready_engine(_settings: Settings) -> Engine:
        """Opens the engine; called in its own thread."""
        engine = open_endless(options["source"], options["device"])
        asyncio.run(until_compiled(engine))
        return engine

    database = Path(options["database"])
    sys.exit(serve(Settings(port=options["port"], database=f"sqlite:///{database}", log_level="warning"), ready_engine))
