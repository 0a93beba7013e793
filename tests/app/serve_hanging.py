"""A server process over a real model whose forward pass hangs: python -m tests.app.serve_hanging <options as JSON>."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from torch import nn

from app.core.settings import Settings
from app.server import serve
from tests.memory_store import memory_store


def main(options: dict[str, Any]) -> int:
    """Serves a model folder. From the time at which `hang_file` exists, a hook of the embedding never returns."""
    hang_file = Path(options["hang_file"])

    def hang(module: nn.Module, _arguments: Any, _output: Any) -> None:
        while isinstance(module, nn.Embedding) and hang_file.exists():
            time.sleep(0.05)

    nn.modules.module.register_module_forward_hook(hang)
    return serve(Settings(port=0, **options["settings"]), store_factory=memory_store)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
