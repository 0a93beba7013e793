"""Route: one route of the API as a method of both clients."""

import ast
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cache, cached_property, partial
from inspect import Parameter, Signature, cleandoc, getsource, signature
from itertools import pairwise
from string import Formatter
from types import NoneType
from typing import Any, TypeAlias
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter, ValidationError

from steering.client.connection import ApiError, AsyncConnection, Call, Connection, unreadable
from steering.schemas.base import NamespaceQuery
from steering.schemas.resources import JobAnswer

JsonObject: TypeAlias = Mapping[str, Any]
OF_THE_CLIENT = frozenset({"stream", "wait"})
"""Fields of requests that no method takes: which method is called says so."""


@dataclass(eq=False)
class Route:
    """One route of the API, as an attribute of `Api` the method that sends its arguments.

    An argument that the path names goes into the path, one of `query` and `headers` (name: header) there, and `content` is
    the raw body. The others are the fields of the JSON body, or the query without one. None is not sent.

    What a method does stands in the string below it, as for the fields of a class.

    line: method and path.
    answer: the type of the response.
    request: the models whose fields the method takes, besides what the path names; or a function that returns the fields.
    order: fields that may be given by position, after what the path names. All others are given by name.
    fixed: fields that every call sends.
    nulls: options that send null for a field, by name.
    part: of the result of the job that the route starts, and that the method waits for; "" for all of it.
    events: the type of each event of a stream by its name.
    """

    line: str
    answer: Any
    request: type[BaseModel] | Sequence[type[BaseModel]] | Callable[..., JsonObject] = ()
    _: KW_ONLY
    order: Sequence[str] = ()
    fixed: JsonObject = field(default_factory=dict)
    query: Sequence[str] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    nulls: Mapping[str, str] = field(default_factory=dict)
    lines: type[BaseModel] | None = None
    part: str | None = None
    accept: str | None = None
    content_type: str = "application/octet-stream"
    events: Mapping[str, type[BaseModel]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.method, self.path = self.line.split(" ")
        self.names = [name for _, name, _, _ in Formatter().parse(self.path) if name]

    def __set_name__(self, owner: type, name: str) -> None:
        self.__name__, self._owner = name, owner

    @property
    def doc(self) -> str:
        """What the method does."""
        return _documentation(self._owner).get(self.__name__, "")

    def started(self) -> "Route":
        """Returns the method that starts the job and does not wait for it."""
        return replace(self, answer=JobAnswer, part=None)

    def streamed(self, events: Mapping[str, type[BaseModel]], line: str | None = None) -> "Route":
        """Returns a method with the same arguments that streams events. line: of another route."""
        fixed = {**self.fixed, "stream": True} if self.method == "POST" else self.fixed
        return replace(self, line=line or self.line, events=events, fixed=fixed)

    @property
    def models(self) -> Sequence[type[BaseModel]]:
        """The models whose fields the method takes; none where a function returns them."""
        if isinstance(self.request, Sequence):
            return self.request
        return (self.request,) if isinstance(self.request, type) else ()

    @cached_property
    def parameters(self) -> Mapping[str, tuple[Sequence[Any], bool]]:
        """The types of each field that the method takes, in order, and whether it is required."""
        found: dict[str, tuple[Sequence[Any], bool]] = dict.fromkeys(self.names, ((str,), True))
        found |= dict.fromkeys(self.order, ((), True))
        for model in self.models:
            left_out = {*OF_THE_CLIENT, *self.names, *self.fixed}
            left_out |= {"namespace"} if issubclass(model, NamespaceQuery) else set()
            for name, one in model.model_fields.items():
                if name not in left_out:
                    found[name] = (*found.get(name, ((), True))[0], one.annotation), one.is_required()
        found |= dict.fromkeys((*self.query, *self.nulls), ((bool,), False))
        return found | dict.fromkeys(self.headers, ((str,), False))

    @cached_property
    def signature(self) -> Signature:
        """The arguments, without their types."""
        if not self.models and callable(self.request):
            return signature(self.request)
        return Signature([self._parameter(name, required) for name, (_, required) in self.parameters.items()])

    def _parameter(self, name: str, required: bool) -> Parameter:
        by_position = name in self.names or name in self.order
        kind = Parameter.POSITIONAL_OR_KEYWORD if by_position else Parameter.KEYWORD_ONLY
        return Parameter(name, kind, default=Parameter.empty if required else None)

    def read(self, content: bytes) -> Any:
        """Parses the body of a response."""
        if self.lines is not None:
            return [self.lines.model_validate_json(line) for line in content.splitlines() if line]
        answer = JobAnswer if self.part is not None else self.answer
        if answer is bytes:
            return content
        return None if answer is NoneType else TypeAdapter(answer).validate_json(content)

    def of_job(self, result: JsonObject) -> Any:
        """Returns the answer from the result of a job. Raises ApiError where it cannot be read."""
        try:
            return TypeAdapter(self.answer).validate_json(json.dumps(result[self.part] if self.part else result))
        except (ValidationError, LookupError) as error:
            raise unreadable(error) from error

    def arguments(self, fields: JsonObject) -> dict[str, Any]:
        """Returns the arguments of `httpx2.Client.request` for these fields. Raises what `to_json` raises."""
        rest = {name: to_json(value, name) for name, value in fields.items() if value is not None}
        rest |= {name: None for option, name in self.nulls.items() if rest.pop(option, False)}
        names = {name: quote(str(rest.pop(name)), safe="@") for name in self.names}  # a slash selects no other route
        headers = {header: rest.pop(name) for name, header in self.headers.items() if name in rest}
        headers |= {} if self.accept is None else {"Accept": self.accept}
        query = {name: rest.pop(name) for name in self.query if name in rest}
        content, body = rest.pop("content", None), None
        if content is not None:
            headers["Content-Type"] = self.content_type
        if content is not None or self.method in ("GET", "DELETE"):
            query |= {name: ",".join(map(str, one)) if isinstance(one, list) else one for name, one in rest.items()}
        else:
            body = rest
        url = self.path.format_map(names)
        return {
            "method": self.method, "url": url, "params": query, "headers": headers, "json": body, "content": content
        }  # fmt: skip

    def __get__(self, client: Connection | AsyncConnection | None, owner: type) -> Any:
        if client is None:
            self.__doc__ = self.doc
            return self
        send: Callable[[Call[Any]], Any] = client.events if self.events else client.send
        if self.part is not None:
            waiting: Callable[..., Any] = _result_of if isinstance(client, Connection) else _awaited_result_of
            send = partial(waiting, client, self)
        arguments = self.signature

        def method(*args: Any, **kwargs: Any) -> Any:
            fields = arguments.bind(*args, **kwargs).arguments
            if not self.models and callable(self.request):
                fields = dict(self.request(*args, **kwargs))
            return send(Call(self.arguments({**fields, **self.fixed}), self.read, self.events))

        method.__name__, method.__doc__ = self.__name__, self.doc
        method.__signature__ = arguments  # type: ignore[attr-defined] # read by inspect
        return method


@cache
def _documentation(owner: type) -> Mapping[str, str]:
    """Returns the strings below the attributes of a class; none where its source is not there any more."""
    try:
        (tree,) = ast.parse(getsource(owner)).body
    except (OSError, SyntaxError, ValueError):
        return {}
    return {
        before.targets[0].id: cleandoc(after.value.value)
        for before, after in pairwise(getattr(tree, "body", ()))
        if isinstance(before, ast.Assign) and isinstance(before.targets[0], ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    }


def _result_of(client: Connection, route: Route, call: Call[JobAnswer]) -> Any:
    return route.of_job(client.wait_for_job(client.send(call)))


async def _awaited_result_of(client: AsyncConnection, route: Route, call: Call[JobAnswer]) -> Any:
    return route.of_job(await client.wait_for_job(await client.send(call)))


def to_json(value: Any, param: str = "") -> Any:
    """Converts models, mappings and sequences in an argument to JSON types. Raises ApiError for a number that is not finite and a text
    that is not UTF-8, which cannot be sent. param: the name of the argument."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, Mapping):
        return {to_json(key, param): to_json(item, param) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise ApiError(f"{param}: expected a finite number, got {value}", code="invalid_request", param=param)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            found = f"{param}: expected UTF-8 text, got {value[error.start]!r} in it"
            raise ApiError(found, code="invalid_request", param=param) from None
    return [to_json(item, param) for item in value] if isinstance(value, list | tuple) else value
