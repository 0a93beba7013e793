"""Builds and serializes answers in threads: one may contain a hundred thousand numbers, and the event loop serves everybody."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.responses import Response

from app.core.events import Event
from steering.threads import run_in_thread

# Memory in bytes of what an answer is made of
ACTIVATION_BYTES = 8  # float32, and a copy while layers are stacked
SCORE_BYTES = 64  # a Python float in a list, and its text
ALTERNATIVE_BYTES = 512  # one listed token, its log-probability and text included, as objects and as JSON
SHOWN_DAMAGED = 10  # damaged vectors, profiles or jobs that a warning names


async def json_in_thread(
    build: Callable[[], Any], *, status: int = 200, exclude_none: bool = False, exclude_unset: bool = False
) -> Response:
    """Returns the response with what `build` returns, a model or JSON-ready values. `exclude_none` and
    `exclude_unset` are those of `model_dump`."""
    content = await run_in_thread(lambda: json_of(build(), exclude_none=exclude_none, exclude_unset=exclude_unset))
    return Response(content, status, media_type="application/json")


async def event_in_thread(build: Callable[[], BaseModel], name: str) -> Event:
    """Returns the event with what `build` returns."""
    return Event(await run_in_thread(lambda: build().model_dump_json(exclude_none=True, ensure_ascii=True)), name)


def json_of(answer: Any, *, exclude_none: bool = False, exclude_unset: bool = False) -> bytes:
    """Serializes an answer. The serializer holds the interpreter, so the objects of a list in a dict are written one by one."""
    if isinstance(answer, BaseModel):
        return answer.__pydantic_serializer__.to_json(answer, exclude_none=exclude_none, exclude_unset=exclude_unset)
    if isinstance(answer, dict):
        return b"{" + b",".join(_entries(answer)) + b"}"
    return to_json(answer, inf_nan_mode="null")


def _entries(answer: dict[str, Any]) -> Iterator[bytes]:
    for name, value in answer.items():
        several = isinstance(value, list) and value and isinstance(value[0], dict)
        text = b"[" + b",".join(map(json_of, value)) + b"]" if several else json_of(value)
        yield to_json(name) + b":" + text


def damage_warnings(damaged: Sequence[str]) -> tuple[str, ...]:
    """Returns a warning that names damaged vectors, profiles or jobs, which the answer leaves out, if there are any."""
    if not damaged:
        return ()
    more = f" and {len(damaged) - SHOWN_DAMAGED} more" if len(damaged) > SHOWN_DAMAGED else ""
    shown = ", ".join(damaged[:SHOWN_DAMAGED])
    return (f"left out, because their stored bytes are damaged: {shown}{more}; restore or delete them",)
