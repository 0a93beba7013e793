"""Registry: a table of named extension points, such as methods, stores and engines."""

from collections import UserDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pkgutil import resolve_name
from typing import TypeVar

from steering.errors import InvalidRequest

T = TypeVar("T")
NAME_LIMIT = 64
"""Characters of an unknown name that are repeated and compared."""


class Registry(UserDict[str, T]):
    """A table from names to entries. entries: available at once. param: the field or setting that holds such a name.
    loaders: for entries that are slow to import: where each is imported from on first use ("package.module:name"), or a
    function that returns it."""

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, T] | None = None,
        *,
        loaders: Mapping[str, str | Callable[[], T]] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(entries or {})
        self.kind, self.param = kind, param or kind
        # "" for what needs no loader, so that these are the names in their order
        self._loaders: dict[str, str | Callable[[], T]] = {**dict.fromkeys(self.data, ""), **(loaders or {})}

    def __missing__(self, name: str) -> T:
        """Loads an entry on its first use. Raises InvalidRequest with the names that exist."""
        if name not in self._loaders:
            raise self._unknown(name)
        loader = self._loaders[name]
        self.data[name] = resolve_name(loader) if isinstance(loader, str) else loader()
        return self.data[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)

    def __contains__(self, name: object) -> bool:
        return name in self._loaders

    def register(self, name: str, loader: Callable[[], T]) -> None:
        """Adds an entry of another package. Raises InvalidRequest for a name that is taken."""
        if name in self:
            raise InvalidRequest(f"{self.param}: {self.kind} {name!r} is registered already", param=self.param)
        self._loaders[name] = loader

    def unregister(self, name: str) -> None:
        """Removes what `register` added. Raises InvalidRequest for any other name."""
        if not self._loaders.get(name):
            raise self._unknown(name)
        del self._loaders[name]
        self.data.pop(name, None)

    def _unknown(self, name: str) -> InvalidRequest:
        return InvalidRequest(unknown_name(self.kind, name, list(self), self.param), param=self.param)


def unknown_name(kind: str, name: str, known: Sequence[str], param: str) -> str:
    """Words the error about a name that is not in a table: the field, the nearest name, and all that exist."""
    shown = str(name)[:NAME_LIMIT]
    return f"{param}: unknown {kind} {shown!r}{suggestion(shown, known) or ';'} known: {', '.join(known) or 'none'}"


def suggestion(name: str, known: Sequence[str]) -> str:
    """Words the question after the nearest of the known names, spelled alike or begun so; empty where none is near."""
    name = name[:NAME_LIMIT]
    begun = [one for one in known if len(name) > 2 and one.startswith(name)]
    near = get_close_matches(name, known, n=1) or begun
    return f"; did you mean {near[0]!r}?" if near else ""
