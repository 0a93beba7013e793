"""Route and Method: how a function that declares arguments becomes a method of both clients."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from inspect import signature
from string import Formatter
from types import NoneType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeAlias, TypeVar, overload
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter

from steering.client.connection import AsyncConnection, Call, Connection
from steering.client.options import JsonObject

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")
Builder: TypeAlias = Callable[Concatenate[Any, P], JsonObject | None]


class Route(Generic[T]):
    """One route of the API. Called with a function of `Api`, it returns the method that sends the function's arguments.

    An argument that the path names goes into the path, one of `query` and `headers` (name: header) there, and `content` is
    the raw body. The others are the fields of the JSON body, or the query without one. None is not sent. A function that
    returns a mapping sends that in place of its arguments.

    line: method and path.
    answer: the type of the response.
    read: parses the response where JSON of `answer` does not.
    wait: waits for the result of the job that the route starts.
    """

    def __init__(
        self,
        line: str,
        answer: type[T],
        *,
        query: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        read: Callable[[bytes], T] | None = None,
        wait: bool = False,
        accept: str | None = None,
        content_type: str = "application/octet-stream",
    ) -> None:
        self.method, self.path = line.split(" ")
        self.read = read or (lambda content: _parsed(answer, content))
        self._names = [name for _, name, _, _ in Formatter().parse(self.path) if name]
        self._query, self._headers, self._content_type = query, headers or {}, content_type
        self._fixed_query = {"wait": True} if wait else {}
        self._fixed_headers = {} if accept is None else {"Accept": accept}

    def __call__(self, build: Builder[P]) -> "Method[P, T]":
        """Makes a function of `Api` the method of this route."""
        return Method(build, self, build.__doc__)

    def arguments(self, fields: JsonObject) -> dict[str, Any]:
        """Returns the arguments of `httpx2.Client.request` for these fields."""
        rest = {name: to_json(value) for name, value in fields.items() if value is not None}
        names = {name: quote(str(rest.pop(name)), safe="@") for name in self._names}  # a slash selects no other route
        headers = {
            header: rest.pop(name) for name, header in self._headers.items() if name in rest
        } | self._fixed_headers
        query = self._fixed_query | {name: rest.pop(name) for name in self._query if name in rest}
        content = rest.pop("content", None)
        if content is not None:
            headers["Content-Type"] = self._content_type
        body = None
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


def to_json(value: Any) -> Any:
    """Converts models, mappings and sequences in a value to JSON types."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: to_json(item) for key, item in value.items()}
    return [to_json(item) for item in value] if isinstance(value, list | tuple) else value


class _Declared(Generic[P, T]):
    """The arguments of a method as a function declares them, and the call that they make."""

    events: Mapping[str, type[Any]] | None = None

    def __init__(self, build: Builder[P], route: Route[Any], doc: str | None) -> None:
        self._build, self.route, self.__doc__, self.__name__ = build, route, doc, ""
        own = signature(build)
        self.signature = own.replace(parameters=list(own.parameters.values())[1:])

    def __set_name__(self, owner: type, name: str) -> None:
        self.__name__ = name

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[T]:
        """Returns the call with these arguments."""
        fields = self._build(None, *args, **kwargs)
        if fields is None:
            bound = self.signature.bind(*args, **kwargs)
            bound.apply_defaults()
            fields = bound.arguments | bound.arguments.pop("options", {})
        if self.events is not None and self.route.method == "POST":
            fields = {**fields, "stream": True}
        return Call(self.route.arguments(fields), self.route.read, self.events or {})

    def _bound(self, send: Callable[[Call[T]], Any]) -> Any:
        """Returns a function that sends its arguments, with the name, words and signature of the method."""

        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return send(self.call(*args, **kwargs))

        method.__name__, method.__doc__ = self.__name__, self.__doc__
        method.__signature__ = self.signature  # type: ignore[attr-defined] # read by inspect
        return method


class Method(_Declared[P, T]):
    """A route as a method of both clients: it returns the response, or an awaitable of it."""

    def variant(self, line: str, answer: type[U], doc: str) -> "Method[P, U]":
        """Returns a method with the same arguments and another route."""
        return Method(self._build, Route(line, answer), doc)

    def streamed(self, doc: str, events: Mapping[str, type[U]], line: str | None = None) -> "StreamMethod[P, U]":
        """Returns a method with the same arguments that streams events. line: of another route."""
        return StreamMethod(self._build, self.route if line is None else Route(line, NoneType), doc, events)

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Connection, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncConnection, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Connection | AsyncConnection | None, owner: type) -> Any:
        return self if client is None else self._bound(client.send)


class StreamMethod(_Declared[P, T]):
    """A stream as a method of both clients: it returns a generator of events, whose closing cancels the request."""

    def __init__(self, build: Builder[P], route: Route[Any], doc: str, events: Mapping[str, type[T]]) -> None:
        super().__init__(build, route, doc)
        self.events = events

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Connection, owner: type) -> Callable[P, Generator[T]]: ...
    @overload
    def __get__(self, client: AsyncConnection, owner: type) -> Callable[P, AsyncGenerator[T]]: ...
    def __get__(self, client: Connection | AsyncConnection | None, owner: type) -> Any:
        return self if client is None else self._bound(client.events)


class Arguments(Generic[P]):
    """The arguments that several methods share. Called with a route, it returns the method; `options` are those of `Route`."""

    def __init__(self, build: Builder[P]) -> None:
        self._build = build

    def __call__(self, line: str, answer: type[T], doc: str, **options: Any) -> Method[P, T]:
        """Returns the method of a route with these arguments."""
        return Method(self._build, Route(line, answer, **options), doc)
