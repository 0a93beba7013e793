"""The console of all commands, sanitized output of model text, and the client that commands get from their options."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import update_wrapper
from inspect import Signature, isgeneratorfunction, signature
from operator import methodcaller
from typing import Annotated, Any, Concatenate, TypeAlias

from rich.console import Console
from rich.text import Text
from typer import Option, Typer

from app.core.process_settings import prepare_for_torch
from steering.client import Client
from steering.client.connection import DEFAULT_URL

WIDTH = 110
"""Columns of output that does not go to a terminal."""

console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
stderr = Console(stderr=True, highlight=False)

Url = Annotated[str, Option("--url", envvar="STEERING_URL", help="Address of the server.")]
Key = Annotated[str | None, Option("--key", envvar="STEERING_KEY", help="API key of the server.")]
AsJson = Annotated[bool, Option("--json", help="Print the server's response as JSON.")]
Local = Annotated[bool, Option("--local", help="Run the model in this process instead of asking a server.")]

Output: TypeAlias = Iterator[Any]
"""Of a command with --json: first the response, which --json prints; then what is printed without it.

In place of the response a function that asks for it, if the command asks otherwise without --json: for a stream.
"""
Connect: TypeAlias = Callable[..., Client]
"""Opens a client that is closed when the command ends; see `client_of` for what --local takes."""
ClientCommand: TypeAlias = Callable[Concatenate[Client, ...], Output | None]

_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
_BIDIRECTIONAL = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_REMOVED = re.compile(rf"[{_CONTROLS}{_BIDIRECTIONAL}\u2028\u2029\ud800-\udfff]")  # and separators, surrogates


def safe(text: str) -> str:
    """Removes control codes and direction overrides, so that model text cannot move the cursor or hide a line."""
    return _REMOVED.sub("", text)


def shown(text: str, style: str = "") -> Text:
    """Returns untrusted text for a table or a line, sanitized and without markup."""
    return Text(safe(text), style=style)


@contextmanager
def client_of(url: str, key: str | None, local: bool = False, interventions: Any = None) -> Iterator[Client]:
    """Yields a client for the options of a command, with --local of a model in this process.

    STEERING_NAMESPACE names the namespace of every command of an admin. interventions: with --local, the starter vectors that
    they name are extracted if they are missing.
    """
    if not local:
        with Client(url, api_key=key, namespace=os.environ.get("STEERING_NAMESPACE") or None) as client:
            yield client
        return
    prepare_for_torch()  # next to busy processes a comparison took 23 s instead of 102 s
    from app.cli.local import extract_missing, local_client  # noqa: PLC0415 - imports torch and loads a model

    with local_client() as client:
        if isinstance(interventions, list):
            extract_missing(client, [one["vector"] for one in interventions if isinstance(one.get("vector"), str)])
        yield client


def with_client(command: ClientCommand) -> Callable[..., None]:
    """Gives a command a client in place of its first parameter, from the options --url and --key; --json if it yields its output."""
    return _with_options(command, "url", "key")


def with_connection(command: Callable[Concatenate[Connect, ...], Output | None]) -> Callable[..., None]:
    """Like `with_client`, with the option --local. The command calls its first parameter once what it was given is checked."""
    return _with_options(command, "local", "url", "key")


def _shared_options(as_json: AsJson = False, local: Local = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Declares the options that `_with_options` adds to a command."""


def _with_options(command: Callable[..., Output | None], *connection: str) -> Callable[..., None]:
    """Returns what typer calls: options are those of the command, --json if it yields its output, and `connection`.

    connection: names of the options that the client is opened with. With `local` the command opens it itself.
    """
    has_output = isgeneratorfunction(command)

    def run(**arguments: Any) -> None:
        connecting = {name: arguments.pop(name) for name in connection}
        as_json = has_output and arguments.pop("as_json")
        with ExitStack() as stack:  # closes the client when the output has been printed

            def connect(interventions: Any = None) -> Client:
                return stack.enter_context(client_of(**connecting, interventions=interventions))

            output = command(connect if "local" in connection else connect(), **arguments)
            if output is not None:
                _print_output(output, as_json)

    own = list(signature(command).parameters.values())[1:]
    shared = signature(_shared_options).parameters
    added = [shared[name] for name in (("as_json", *connection) if has_output else connection)]
    run.__signature__ = Signature([*own, *added])  # type: ignore[attr-defined] # read by typer
    return update_wrapper(run, command)


def _print_output(output: Output, as_json: bool) -> None:
    """Prints the response, or all that follows it."""
    response = next(output)
    if as_json:
        print_json(response() if callable(response) else response)
    else:
        for one in output:
            console.print(one)


def client_command(group: Typer, name: str | None = None) -> Callable[[ClientCommand], Callable[..., None]]:
    """Adds a function to a group as a command with a client, see `with_client`."""
    return lambda function: group.command(name)(with_client(function))


def print_json(value: Any, *, exclude_none: bool = False) -> None:
    """Prints JSON in ASCII, which contains no control codes. value: JSON types and models."""
    dumped = methodcaller("model_dump", mode="json", exclude_none=exclude_none)
    console.print(json.dumps(value, indent=2, ensure_ascii=True, default=dumped), markup=False, soft_wrap=True)


def print_warnings(warnings: Iterable[str]) -> None:
    """Prints warnings of the server to stderr."""
    for warning in warnings:
        stderr.print(shown(warning, "yellow"))
