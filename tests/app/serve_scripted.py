"""A server process without a model, for the tests of signals: python -m tests.app.serve_scripted <options as JSON>."""

import json
import sys
import time
from typing import Any

from app.serving import serve
from app.settings import Settings
from steering.errors import ModelLoadFailed
from tests.app.conftest import memory_store
from tests.fakes import ScriptedEngine


def main(options: dict[str, Any]) -> int:
    """Serves a ScriptedEngine until a signal. load_seconds: how long "loading" blocks; broken: whether it fails."""
    settings = Settings(port=0, **options.get("settings", {}))

    def engine(_: Settings) -> ScriptedEngine:
        time.sleep(options.get("load_seconds", 0))
        if options.get("broken"):
            raise ModelLoadFailed("there is no such model")
        return ScriptedEngine(**options.get("engine", {}))

    return serve(settings, engine, memory_store)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
