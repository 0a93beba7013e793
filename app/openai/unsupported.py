"""Fields of the OpenAI API that are known and not offered: each is refused by name unless it has no effect."""

from typing import Any

from steering.errors import UnsupportedParameter

_ANY = object()
"""No value of the field is accepted."""

CHAT_REFUSED: dict[str, Any] = {
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "audio": _ANY,
    "modalities": ["text"],
    "prediction": _ANY,
    "reasoning_effort": _ANY,
    "verbosity": _ANY,
    "web_search_options": _ANY,
    "moderation": _ANY,
    "prompt_cache_retention": _ANY,
    "prompt_cache_options": _ANY,
    "parallel_tool_calls": True,
}
"""Field -> the value that has no effect and is therefore accepted."""
COMPLETION_REFUSED: dict[str, Any] = {"suffix": "", "best_of": 1}
EMBEDDING_REFUSED: dict[str, Any] = {"dimensions": _ANY}


def refuse(body: Any, refused: dict[str, Any]) -> Any:
    """Returns the body without fields that have no effect. Raises UnsupportedParameter for one that would have."""
    if not isinstance(body, dict):
        return body
    for name, neutral in refused.items():
        value = body.get(name)
        if name in body and value is not None and (neutral is _ANY or value not in (neutral, False)):
            raise UnsupportedParameter(f"{name} is not supported by this server", param=name)
    return {name: value for name, value in body.items() if name not in refused}
