"""Runs a program of a page as it stands."""

from typing import Any

from openai import OpenAI


def executed(program: str, page: str) -> dict[str, Any]:
    """Executes a program and returns what it defined.

    An `openai` client is closed, as none of the pages does: of its open socket, a later collection of garbage may warn.
    """
    names: dict[str, Any] = {}
    exec(compile(program, page, "exec"), names)
    if isinstance(client := names.get("client"), OpenAI):
        client.close()
    return names
