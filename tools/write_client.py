"""Writes the types of the client's methods, from its table of routes and the request models, to steering/client/api.pyi.

Usage: `python -m tools.write_client`.
"""

import types
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from steering.client.api import Api
from steering.client.routes import Route
from steering.spec import InlineVector

PATH = Path(__file__).resolve().parent.parent / "steering" / "client" / "api.pyi"
HEAD = '''# fmt: off
# ruff: noqa: I001
"""The types of api.py: written by `python -m tools.write_client`, not by hand."""

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any, Literal

from steering.client.connection import AsyncConnection, Connection
from steering.client.routes import JsonObject
{imports}

class Api:
    """Every route as a method."""
'''
SYNCHRONOUS = '''
class Client(Connection, Api):
    """The synchronous client; `__init__` documents its options."""
'''
ASYNCHRONOUS = '''
class AsyncClient(AsyncConnection, Api):
    """The client for asyncio. It has the same methods and options; calls are awaited, streams are asynchronous generators."""
'''


class Types:
    """Writes types, and collects what they need to be imported."""

    def __init__(self) -> None:
        self._modules: dict[str, set[str]] = {}

    @property
    def imports(self) -> str:
        """The lines that import what was written."""
        found = sorted(self._modules.items())
        return "\n".join(f"from {module} import {', '.join(sorted(names))}" for module, names in found)

    def written(self, *kinds: Any) -> str:
        """Writes a union of types of a request as a caller may give them."""
        return " | ".join(
            sorted(dict.fromkeys(part for kind in kinds for part in self._forms(kind)), key="None".__eq__)
        )

    def _forms(self, kind: Any) -> list[str]:
        """Returns the forms in which a value may be given: a model also as an object, a tuple as any sequence."""
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self._forms(arguments[0])
        if origin in (Union, types.UnionType):
            return [form for one in arguments for form in self._forms(one)]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return [self.named(kind), "JsonObject"]
        if origin is Literal:
            found = f"Literal[{', '.join(map(repr, arguments))}]".replace("'", '"')
        elif origin is tuple and arguments[-1] is not Ellipsis:
            found = f"tuple[{', '.join(map(self.written, arguments))}]"
        elif origin in (tuple, list, Sequence):
            inner = self.written(arguments[0])
            # A list of words that a caller builds has the type list[str], which is no list of literals.
            found = "Sequence[str]" if inner.startswith("Literal[") else f"Sequence[{inner}]"
        elif origin in (dict, Mapping):
            key, value = map(self.written, arguments)
            found = "JsonObject" if value == "Any" else f"Mapping[{key}, {value}]"
        else:
            found = "JsonObject" if kind is InlineVector else {Any: "Any", NoneType: "None"}.get(kind, "")
        if not found:  # a time is given as text
            found = kind.__name__ if kind.__module__ == "builtins" else "str"
        return [found]

    def answer(self, kind: Any) -> str:
        """Writes the type of an answer."""
        if get_origin(kind) in (dict, list):
            inner = ", ".join(map(self.answer, get_args(kind)))
            return f"{get_origin(kind).__name__}[{inner}]"
        if kind in (Any, NoneType):
            return "Any" if kind is Any else "None"
        return kind.__name__ if kind.__module__ == "builtins" else self.named(kind)

    def named(self, kind: type) -> str:
        """Returns the name of a class that is imported."""
        self._modules.setdefault(kind.__module__, set()).add(kind.__name__)
        return kind.__name__


def _arguments(route: Route, known: Types) -> str:
    if not route.models and callable(route.request):
        own = signature(route.request).parameters.values()
        parameters = [(one.name, known.written(one.annotation), one) for one in own]
    else:
        shown = {name: known.written(*kinds) for name, (kinds, _) in route.parameters.items()}
        parameters = [(name, shown[name], one) for name, one in route.signature.parameters.items()]
    written, by_name = ["self"], False
    for name, kind, one in parameters:
        if one.kind is Parameter.KEYWORD_ONLY and not by_name:
            written.append("*")
            by_name = True
        optional = one.default is not Parameter.empty
        shown_kind = kind if not optional or "None" in kind.split(" | ") else f"{kind} | None"
        written.append(f"{name}: {shown_kind}" + " = ..." * optional)
    return ", ".join(written)


def _method(name: str, route: Route, known: Types, *, waits: bool) -> str:
    answer, word = known.answer(route.answer), "" if waits or route.events else "async "
    if route.events:
        events = " | ".join(dict.fromkeys(map(known.named, route.events.values())))
        answer = f"Generator[{events}]" if waits else f"AsyncGenerator[{events}]"
    doc = route.doc.replace("\n", "\n        ").replace("\n        \n", "\n\n")
    end = "\n        " if "\n" in doc else ""
    return f'    {word}def {name}({_arguments(route, known)}) -> {answer}:\n        """{doc}{end}"""\n'


def stub() -> str:
    """Returns the types as they are committed."""
    known, routes = Types(), {name: one for name, one in vars(Api).items() if isinstance(one, Route)}
    parts = []
    for head, waits in ((SYNCHRONOUS, True), (ASYNCHRONOUS, False)):
        parts += [head, *(_method(name, route, known, waits=waits) for name, route in routes.items())]
    return HEAD.format(imports=known.imports) + "\n".join(parts)


if __name__ == "__main__":
    PATH.write_text(stub(), encoding="utf-8")
