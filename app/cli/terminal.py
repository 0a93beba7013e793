"""The terminal of commands: consoles, untrusted text, JSON, and errors of settings."""

import json
import os
import re
import sys
from collections.abc import Iterable
from operator import methodcaller
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.segment import Segment, Segments
from rich.text import Text
from typer import Exit

from app.core.settings import Settings

STANDARD_OUTPUT = 1  # its file descriptor
WIDTH = 110  # columns of output that does not go to a terminal
console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
stderr = Console(stderr=True, highlight=False)

_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"
_BIDIRECTIONAL = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_REMOVED = re.compile(rf"[{_CONTROLS}{_BIDIRECTIONAL}\u2028\u2029\ud800-\udfff]")  # and separators, surrogates


def beside(*files: Any) -> Console:
    """Returns the console for what a command prints besides files: standard error where one of them is standard output, and that is no
    terminal, where both would be seen. files: paths; anything else is passed over."""
    found = () if os.isatty(STANDARD_OUTPUT) else (one for one in files if isinstance(one, Path) and one.exists())
    return stderr if any(os.path.samestat(one.stat(), os.fstat(STANDARD_OUTPUT)) for one in found) else console


def safe(text: str) -> str:
    """Removes control codes and direction overrides, so that model text cannot move the cursor or hide a line."""
    return _REMOVED.sub("", text)


def shown(text: str, style: str = "") -> Text:
    """Returns untrusted text for a table or a line, sanitized and without markup."""
    return Text(safe(text), style=style)


def print_exactly(text: str) -> None:
    """Prints a text as it is: `Console.print` and `Console.out` replace tabs by spaces, and the first also codes such as :smile:."""
    console.print(Segments([Segment(text)]), soft_wrap=True)


def print_json(value: Any) -> None:
    """Prints JSON in ASCII, which contains no control codes. value: JSON types and models."""
    dumped = methodcaller("model_dump", mode="json")
    print_exactly(json.dumps(value, indent=2, ensure_ascii=True, default=dumped) + "\n")


def print_warnings(warnings: Iterable[str]) -> None:
    """Prints warnings of the server to stderr."""
    for warning in warnings:
        stderr.print(shown(warning, "yellow"))


def settings_of(options: dict[str, Any]) -> Settings:
    """Returns settings from options and environment. Reports what is invalid and exits with 2."""
    try:
        return Settings(**options)
    except ValidationError as error:
        for finding in error.errors():
            where = ".".join(map(str, finding["loc"])) or "settings"
            stderr.print(shown(f"{where}: {finding['msg'].removeprefix('Value error, ')}", "red"))
        raise Exit(2) from None
