"""Registry: a readable table from a name to a class, some of them loaded only when asked."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Generic, TypeVar, cast

from steering.errors import InvalidRequest

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A table `name -> object`, where a string `"module:attribute"` stands for an object loaded on first use."""

    def __init__(self, kind: str, table: Mapping[str, T | str]) -> None:
        self.kind = kind
        self._table = dict(table)

    def __getitem__(self, name: str) -> T:
        """The entry. Raises InvalidRequest naming what exists, so a caller's typing error explains itself."""
        if name not in self._table:
            raise InvalidRequest(f"unknown {self.kind} {name!r}; known: {', '.join(self._table)}", param=self.kind)
        entry = self._table[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = cast(T, getattr(import_module(module), attribute))
            self._table[name] = entry
        return entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, name: object) -> bool:
        return name in self._table
