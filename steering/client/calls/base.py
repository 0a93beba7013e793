"""Call: one request of the API, and how its answer is read. Knows nothing of connections, torch or the server."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from steering.schemas.generation import Message
from steering.spec import InterventionSpec

T = TypeVar("T")
E = TypeVar("E", bound=BaseModel)

Words: TypeAlias = Mapping[str, Any]
"""A JSON object."""
Intervention: TypeAlias = InterventionSpec | Words
Steering: TypeAlias = Sequence[Intervention] | Words
"""A list of interventions, or {"profile": name, "interventions": [...]}."""
Chat: TypeAlias = Sequence[Message | Words]
Text: TypeAlias = str | Chat


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and `read`, which turns the body of its answer into T."""

    method: str
    path: str
    read: Callable[[bytes], T]
    body: Words | None = None
    content: bytes | None = None
    query: Words = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StreamCall(Generic[E]):
    """A request that is answered by events. models: the data of each event by its name; `done` is the last."""

    method: str
    path: str
    models: Mapping[str, type[E]]
    body: Words | None = None


class VectorWords(TypedDict, total=False):
    """What is said about a new vector."""

    description: str
    tags: Sequence[str]


def given(**fields: Any) -> dict[str, Any]:
    """The fields that were given, JSON-ready; None is not."""
    return {name: _plain(value) for name, value in fields.items() if value is not None}


def _plain(value: Any) -> Any:
    """Models of ours, wherever they stand, as JSON."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def at(path: str, *names: str) -> str:
    """A path with names put in, quoted: a name never becomes another path."""
    return path.format(*(quote(name, safe="@") for name in names))


def model(kind: type[E]) -> Callable[[bytes], E]:
    """Reads a body as a model of ours."""
    return kind.model_validate_json


def nothing(_: bytes) -> None:
    """Reads no body."""
    return


def whole(content: bytes) -> bytes:
    """The body as it is."""
    return content
