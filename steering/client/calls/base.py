"""Defines Call: one request of the API and how its response is parsed. Independent of connections and of the server."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from steering.schemas.messages import Message
from steering.spec import InterventionSpec

T = TypeVar("T")
E = TypeVar("E", bound=BaseModel)

JsonObject: TypeAlias = Mapping[str, Any]
Intervention: TypeAlias = InterventionSpec | JsonObject
Steering: TypeAlias = Sequence[Intervention] | JsonObject
"""A list of interventions, or {"profile": name, "interventions": [...]}."""
Chat: TypeAlias = Sequence[Message | JsonObject]
Text: TypeAlias = str | Chat
WAIT: JsonObject = {"wait": True}
"""Query of a request that waits for the result of its job."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request. `read` turns the body of its response into T. accept: the media type asked for, where there are several.
    content_type: that of `content`.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    body: JsonObject | None = None
    content: bytes | None = None
    query: JsonObject = field(default_factory=dict)
    accept: str | None = None
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[E]):
    """A request whose response is a stream of events. models: event name -> type of its data; `done` is the last."""

    method: str
    path: str
    models: Mapping[str, type[E]]
    body: JsonObject | None = None


class VectorDescription(TypedDict, total=False):
    """Description and tags of a vector."""

    description: str
    tags: Sequence[str]


def json_fields(**fields: Any) -> dict[str, Any]:
    """Returns the fields that are not None, converted to JSON types."""
    return {name: _to_json(value) for name, value in fields.items() if value is not None}


def _to_json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: _to_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(one) for one in value]
    return value


def path_of(template: str, *names: str) -> str:
    """Returns a path with quoted names, so that a name with a slash cannot select another route."""
    return template.format(*(quote(name, safe="@") for name in names))


def call(method: str, path: str, kind: type[E], query: JsonObject | None = None, /, **fields: Any) -> Call[E]:
    """Returns a call that reads a `kind`. fields: its JSON body, or its query if it has no body. query: next to a body."""
    read, given = kind.model_validate_json, json_fields(**fields)
    if method in ("GET", "DELETE"):
        return Call(method, path, read, query=given)
    return Call(method, path, read, given, query=query or {})


def delete(path: str, **query: Any) -> Call[None]:
    """Returns a call that deletes and reads no body. Fields of the query that are None are left out."""
    return Call("DELETE", path, lambda _: None, query=json_fields(**query))
