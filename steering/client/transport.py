"""Converts calls to HTTP requests, and responses and events to models. Shared by both clients."""

import json
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel

from steering.client.calls.base import Call, StreamCall
from steering.client.calls.errors import event_error, response_error

T = TypeVar("T")
E = TypeVar("E", bound=BaseModel)


def request_arguments(
    base: str, headers: dict[str, str], namespace: str | None, call: Call[T] | StreamCall[E]
) -> dict[str, Any]:
    """Returns the arguments of `httpx2.Client.request` and `stream`."""
    content = call.content if isinstance(call, Call) else None
    query = dict(call.query) if isinstance(call, Call) else {}
    if namespace is not None and not (isinstance(call, Call) and not call.in_namespace):
        query["namespace"] = namespace
    if isinstance(call, Call) and call.accept is not None:
        headers = {**headers, "Accept": call.accept}
    if isinstance(call, Call) and content is not None:
        headers = {**headers, "Content-Type": call.content_type}
    return {
        "method": call.method,
        "url": base + call.path,
        "params": {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()},
        "json": call.body,
        "content": content,
        "headers": headers,
    }


def auth_headers(api_key: str | None) -> dict[str, str]:
    """Returns the header of an API key."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def parse_response(call: Call[T], response: httpx2.Response) -> T:
    """Parses the body of a response. Raises ApiError for an error status."""
    if response.is_error:
        raise response_error(response)
    return call.read(response.content)


def parse_event(call: StreamCall[E], event: httpx2.ServerSentEvent, response: httpx2.Response) -> E | None:
    """Returns the parsed event, or None for an event that this version does not know.

    Raises ApiError for an `error` event, except for one that ends a single arm of a comparison.
    """
    model = call.models.get(event.event)
    if event.event == "error" and (model is None or "arm" not in json.loads(event.data)):
        raise event_error(event.data, response)
    return None if model is None else model.model_validate_json(event.data)
