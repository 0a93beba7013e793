"""Gives commands the client and the options that all of them have, and prints what they return."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import update_wrapper
from inspect import Signature, signature
from typing import Annotated, Any, Concatenate, TypeAlias

from typer import Option, Typer

from app.cli.terminal import console, print_json
from app.core.process_settings import prepare_for_torch
from steering.client import Client
from steering.client.connection import DEFAULT_URL

Url = Annotated[str, Option("--url", envvar="STEERING_URL", help="Address of the server.")]
Key = Annotated[str | None, Option("--key", envvar="STEERING_KEY", help="API key of the server.")]
AsJson = Annotated[bool, Option("--json", help="Print the server's response as JSON.")]
Local = Annotated[bool, Option("--local", help="Run the model in this process instead of asking a server.")]

Output: TypeAlias = tuple[Any, Iterable[Any] | Callable[[], None]]
"""What a command with --json returns: the data that --json prints, and what is printed without it.

Either may be a function. Only the one that is needed is called: it returns the data, or prints.
"""
Connect: TypeAlias = Callable[..., Client]
"""Opens a client that is closed when the command ends; see `client_of` for what --local takes."""
ClientCommand: TypeAlias = Callable[Concatenate[Client, ...], Output | None]


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
    prepare_for_torch()  # the number of threads is decided before torch is loaded
    from app.cli.local import extract_missing, local_client  # noqa: PLC0415 - imports torch and loads a model

    with local_client() as client:
        if isinstance(interventions, list):
            extract_missing(client, [one["vector"] for one in interventions if isinstance(one.get("vector"), str)])
        yield client


def with_client(command: ClientCommand) -> Callable[..., None]:
    """Gives a command a client in place of its first parameter, from the options --url and --key; --json if it returns Output."""
    return _with_options(command, "url", "key")


def with_connection(command: Callable[Concatenate[Connect, ...], Output | None]) -> Callable[..., None]:
    """Like `with_client`, with the option --local. The command calls its first parameter once what it was given is checked."""
    return _with_options(command, "local", "url", "key")


def client_command(group: Typer, name: str | None = None) -> Callable[[ClientCommand], Callable[..., None]]:
    """Adds a function to a group as a command with a client, see `with_client`."""
    return lambda function: group.command(name)(with_client(function))


def _shared_options(as_json: AsJson = False, local: Local = False, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Declares the options that `_with_options` adds to a command."""


def _with_options(command: Callable[..., Output | None], *connection: str) -> Callable[..., None]:
    """Returns what typer calls: options are those of the command, --json if it returns Output, and `connection`.

    connection: names of the options that the client is opened with. With `local` the command opens it itself.
    """
    declared = signature(command)
    has_output = declared.return_annotation is not None

    def run(**arguments: Any) -> None:
        connecting = {name: arguments.pop(name) for name in connection}
        as_json = has_output and arguments.pop("as_json")
        with ExitStack() as stack:  # closes the client when the output has been printed

            def connect(interventions: Any = None) -> Client:
                return stack.enter_context(client_of(**connecting, interventions=interventions))

            output = command(connect if "local" in connection else connect(), **arguments)
            if output is None:
                return
            data, printed = output
            if as_json:
                print_json(data() if callable(data) else data)
            elif callable(printed):
                printed()
            else:
                for item in printed:
                    console.print(item)

    shared = signature(_shared_options).parameters
    added = [shared[name] for name in (("as_json", *connection) if has_output else connection)]
    run.__signature__ = Signature([*list(declared.parameters.values())[1:], *added])  # type: ignore[attr-defined] # read by typer
    return update_wrapper(run, command)
