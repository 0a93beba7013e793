"""Turns builders of calls into methods of both clients."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, overload

from pydantic import BaseModel

from steering.client.calls.base import Call, StreamCall

if TYPE_CHECKING:
    from steering.client.client import AsyncClient, Client

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=BaseModel)


class Method(Generic[P, T]):
    """Exposes a Call builder as a method of both clients: it returns the response, or an awaitable of it."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        if client is None:
            return self

        @wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.send(self._build(*args, **kwargs))

        return method


class Stream(Generic[P, E]):
    """Exposes a StreamCall builder as a method of both clients. It returns a generator; closing it cancels the request."""

    def __init__(self, build: Callable[P, StreamCall[E]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, Generator[E]]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, AsyncGenerator[E]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Any:
        if client is None:
            return self

        @wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.events(self._build(*args, **kwargs))

        return method
