"""Route and Method: how a function that declares arguments becomes a method of both clients."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from functools import partial
from inspect import signature
from string import Formatter
from types import NoneType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeAlias, TypeVar, overload
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter

from steering.client.connection import AsyncConnection, Call, Connection
from steering.schemas.resources import JobAnswer

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")
A = TypeVar("A")
JsonObject: TypeAlias = Mapping[str, Any]
Builder: TypeAlias = Callable[Concatenate[Any, P], JsonObject | None]


class Route(Generic[T]):
    """One route of the API. Called with a function of `Api`, it returns the method that sends the function's arguments.

    An argument that the path names goes into the path, one of `query` and `headers` (name: header) there, and `content` is
    the raw body. The others are the fields of the JSON body, or the query without one. None is not sent. A function that
    returns a mapping sends that in place of its arguments.

    line: method and path.
    answer: the type of the response.
    read: parses the response where JSON of `answer` does not.
    part: of the result of the job that the route starts, and that the method waits for; "" for all of it.
    """

    def __init__(
        self,
        line: str,
        answer: type[T],
        *,
        query: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        read: Callable[[bytes], T] | None = None,
        part: str | None = None,
        accept: str | None = None,
        content_type: str = "application/octet-stream",
    ) -> None:
        self.method, self.path = line.split(" ")
        self.read = read or (lambda content: _parsed(JobAnswer if part is not None else answer, content))
        self.answer, self.part = answer, part
        self._names = [name for _, name, _, _ in Formatter().parse(self.path) if name]
        self._query, self._headers, self._content_type = query, headers or {}, content_type
        self._fixed_headers = {} if accept is None else {"Accept": accept}

    def __call__(self, build: Builder[P]) -> "Method[P, T, Awaitable[T]]":
        """Makes a function of `Api` the method of this route."""
        return Method(build, self, build.__doc__)

    def of_job(self, result: JsonObject) -> T:
        """Returns the answer from the result of a job."""
        part = result[self.part] if self.part else result
        return TypeAdapter(self.answer).validate_json(json.dumps(part))

    def arguments(self, fields: JsonObject) -> dict[str, Any]:
        """Returns the arguments of `httpx2.Client.request` for these fields."""
        rest = {name: to_json(value) for name, value in fields.items() if value is not None}
        names = {name: quote(str(rest.pop(name)), safe="@") for name in self._names}  # a slash selects no other route
        given = {header: rest.pop(name) for name, header in self._headers.items() if name in rest}
        headers = given | self._fixed_headers
        query = {name: rest.pop(name) for name in self._query if name in rest}
        content, body = rest.pop("content", None), None
        if content is not None:
            headers["Content-Type"] = self._content_type
        if content is not None or self.method in ("GET", "DELETE"):
            query |= rest
        else:
            body = rest
        url = self.path.format_map(names)
        return {
            "method": self.method, "url": url, "params": query, "headers": headers, "json": body, "content": content
        }  # fmt: skip


def _parsed(answer: type[T], content: bytes) -> Any:
    if answer is bytes:
        return content
    return None if answer is NoneType else TypeAdapter(answer).validate_json(content)


def _result_of(client: Connection, route: Route[T], call: Call[JobAnswer]) -> T:
    return route.of_job(client.wait_for_job(client.send(call)))


async def _awaited_result_of(client: AsyncConnection, route: Route[T], call: Call[JobAnswer]) -> T:
    return route.of_job(await client.wait_for_job(await client.send(call)))


def to_json(value: Any) -> Any:
    """Converts models, mappings and sequences in a value to JSON types."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else value


class Method(Generic[P, S, A]):
    """A route as a method of both clients: its arguments as a function declares them, and the call that they make.

    The synchronous client gets S, AsyncClient A: the response and an awaitable of it, or with `events` a generator of them, whose
    closing cancels the request.
    """

    def __init__(
        self, build: Builder[P], route: Route[Any], doc: str | None, events: Mapping[str, type[Any]] | None = None
    ) -> None:
        self._build, self.route, self.__doc__, self.__name__ = build, route, doc, ""
        self.events = events or {}
        own = signature(build)
        self.signature = own.replace(parameters=list(own.parameters.values())[1:])

    def __set_name__(self, owner: type, name: str) -> None:
        self.__name__ = name

    def variant(self, line: str, answer: type[T], doc: str, **options: Any) -> "Method[P, T, Awaitable[T]]":
        """Returns a method with the same arguments and another route; `options` are those of `Route`."""
        return Method(self._build, Route(line, answer, **options), doc)

    def streamed(
        self, doc: str, events: Mapping[str, type[T]], line: str | None = None
    ) -> "Method[P, Generator[T], AsyncGenerator[T]]":
        """Returns a method with the same arguments that streams events. line: of another route."""
        return Method(self._build, self.route if line is None else Route(line, NoneType), doc, events)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Connection, owner: type) -> Callable[P, S]: ...
    @overload
    def __get__(self, client: AsyncConnection, owner: type) -> Callable[P, A]: ...
    def __get__(self, client: Connection | AsyncConnection | None, owner: type) -> Any:
        if client is None:
            return self
        send: Callable[[Call[Any]], Any] = client.events if self.events else client.send
        if self.route.part is not None and isinstance(client, Connection):
            send = partial(_result_of, client, self.route)
        elif self.route.part is not None and isinstance(client, AsyncConnection):
            send = partial(_awaited_result_of, client, self.route)

        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return send(self._call(*args, **kwargs))

        method.__name__, method.__doc__ = self.__name__, self.__doc__
        method.__signature__ = self.signature  # type: ignore[attr-defined] # read by inspect
        return method

    def _call(self, *args: P.args, **kwargs: P.kwargs) -> Call[Any]:
        fields = self._build(None, *args, **kwargs)
        if fields is None:
            bound = self.signature.bind(*args, **kwargs)
            bound.apply_defaults()
            fields = bound.arguments | bound.arguments.pop("options", {})
        if self.events and self.route.method == "POST":
            fields = {**fields, "stream": True}
        return Call(self.route.arguments(fields), self.route.read, self.events)
