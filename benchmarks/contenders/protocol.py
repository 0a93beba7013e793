"""The child's end of a side: answers questions, one JSON object a line. Knows the standard library alone."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[..., Any]
"""Keyword arguments of a question to an answer that JSON can hold."""


def answer_questions(begin: Callable[[dict[str, Any]], tuple[Mapping[str, Handler], dict[str, Any]]]) -> None:
    """Calls `begin(options)` for the handlers by name and the facts to report, then answers until the input ends.

    Only answers reach the parent: whatever a library prints goes to standard error instead.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        handlers, facts = begin(json.loads(sys.argv[1]))
    except Exception:
        say({"error": traceback.format_exc()})
        return
    say({"answer": facts})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            say({"answer": handlers[question.pop("task")](**question)})
        except Exception:
            say({"error": traceback.format_exc()})
