"""The console of all commands, sanitized output of model text, and the options shared by the commands."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from app.process_settings import prepare_for_torch
from steering.client import Client
from steering.client.client import DEFAULT_URL

WIDTH = 110
"""Columns of output that does not go to a terminal."""

console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
stderr = Console(stderr=True, highlight=False)

Url = Annotated[str, typer.Option("--url", envvar="STEERING_URL", help="Address of the server.")]
Key = Annotated[str | None, typer.Option("--key", envvar="STEERING_KEY", help="API key of the server.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the server's response as JSON.")]
Local = Annotated[bool, typer.Option("--local", help="Run the model in this process instead of asking a server.")]
LOCAL = DEFAULT_URL

_BIDIRECTIONAL = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C]
_SEPARATORS = [0x2028, 0x2029]
_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]
_REMOVED = dict.fromkeys([*_CONTROLS, *_BIDIRECTIONAL, *_SEPARATORS, *range(0xD800, 0xE000)])
_ALLOWED = {ord("\n"), ord("\t")}
_TABLE = {code: None for code in _REMOVED if code not in _ALLOWED}


def safe(text: str) -> str:
    """Removes control codes and direction overrides, so that model text cannot move the cursor or hide a line."""
    return text.translate(_TABLE)


def shown(text: str, style: str = "") -> Text:
    """Returns untrusted text for a table or a line, sanitized and without markup."""
    return Text(safe(text), style=style)


@contextmanager
def client_of(url: str, key: str | None, local: bool = False) -> Iterator[Client]:
    """Yields a client for the options of a command, with --local of a model in this process.

    STEERING_NAMESPACE names the namespace of every command of an admin.
    """
    if not local:
        with Client(url, api_key=key, namespace=os.environ.get("STEERING_NAMESPACE") or None) as client:
            yield client
        return
    prepare_for_torch()  # next to busy processes a comparison took 23 s instead of 102 s
    from app.cli.local import local_client  # noqa: PLC0415 - imports torch and loads a model

    with local_client() as client:
        yield client


def print_json(value: Any) -> None:
    """Prints JSON in ASCII, which contains no control codes."""
    console.print(json.dumps(value, indent=2, ensure_ascii=True), markup=False, soft_wrap=True)


def numbers(text: str, option: str) -> tuple[float, ...]:
    """Parses numbers such as "-1,0,0.5". Raises BadParameter naming the option."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"expected numbers separated by commas, got {text!r}", param_hint=option) from None


def layers_of(text: str) -> Any:
    """Converts "recommended", "all", "12,13" or "10:16" (half-open) to the API's form. Raises BadParameter."""
    if text in ("recommended", "all"):
        return text
    try:
        if ":" in text:
            start, _, end = text.partition(":")
            return {"from": int(start), "to": int(end)}
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"expected recommended, all, 12,13 or 10:16, got {text!r}", param_hint="--layers"
        ) from None


def steering_of(
    steer: Iterable[str],
    layers: str,
    profile: str | None,
    steering: str | None,
    hold: Iterable[str] = (),
    *,
    share_dose: bool = False,
) -> Any:
    """Converts --steer NAME=STRENGTH, --hold NAME=SCORE, --profile and --steering JSON to the API's form; None without any.

    share_dose: of each --steer.
    """
    shared = {"share_dose": True} if share_dose else {}
    interventions: list[Any] = [_intervention(one, layers) | shared for one in steer]
    interventions += [_held(one, layers) for one in hold]
    if steering is not None:
        try:
            text = Path(steering[1:]).read_text(encoding="utf-8") if steering.startswith("@") else steering
            written = json.loads(text)
        except json.JSONDecodeError as error:
            raise typer.BadParameter(f"not JSON: {error}", param_hint="--steering") from None
        interventions += written if isinstance(written, list) else [written]
    if profile is not None:
        return {"profile": profile, "interventions": interventions}
    return interventions or None


def _intervention(text: str, layers: str) -> dict[str, Any]:
    name, equals, strength = text.partition("=")
    try:
        return {"vector": name, "strength": float(strength) if equals else 1.0, "layers": layers_of(layers)}
    except ValueError:
        raise typer.BadParameter(f"expected NAME=STRENGTH, got {text!r}", param_hint="--steer") from None


def _held(text: str, layers: str) -> dict[str, Any]:
    name, _, score = text.partition("=")
    try:
        return {"vector": name, "layers": layers_of(layers), "hold": {"score": float(score)}}
    except ValueError:
        raise typer.BadParameter(f"expected NAME=SCORE, got {text!r}", param_hint="--hold") from None
