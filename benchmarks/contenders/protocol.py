"""The child's end of a contender: executes requests, one JSON object per line. Imports only the standard library."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[..., Any]
"""Called with the arguments of a request; returns what JSON can represent."""


def serve_requests(begin: Callable[[dict[str, Any]], tuple[Mapping[str, Handler], dict[str, Any]]]) -> None:
    """Calls `begin(options)` for the handlers and facts, then executes requests until the input ends.

    Only results reach the parent: standard output of libraries is redirected to standard error.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        handlers, facts = begin(json.loads(sys.argv[1]))
    except Exception:
        send({"error": traceback.format_exc()})
        return
    send({"result": facts})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            send({"result": handlers[request.pop("task")](**request)})
        except Exception:
            send({"error": traceback.format_exc()})
