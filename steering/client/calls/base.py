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


def parsed(kind: type[E]) -> Callable[[bytes], E]:
    """Returns a reader that validates a JSON body as `kind`."""
    return kind.model_validate_json


def call(method: str, path: str, kind: type[E], /, wait: bool = False, **fields: Any) -> Call[E]:
    """Returns a call that reads a `kind`. fields: its JSON body, or its query if it has no body. wait: for the result of a job."""
    given = json_fields(**fields)
    if method in ("GET", "DELETE"):
        return Call(method, path, parsed(kind), query=given)
    return Call(method, path, parsed(kind), given, query={"wait": True} if wait else {})


def no_body(_: bytes) -> None:
    """Ignores the body."""
    return
