"""Reads texts from arguments and files: plain lines, JSON lines and CSV."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steering.errors import InvalidRequest
from steering.strict_json import load_json

Texts = Annotated[list[str] | None, typer.Argument(help="Texts to read.", show_default=False)]
TextFile = Annotated[
    Path | None,
    typer.Option("--file", exists=True, dir_okay=False, help="More texts: one a line, or .jsonl with a `text` or `messages` per line."),
]  # fmt: skip


def given_texts(texts: list[str] | None, file: Path | None) -> list[Any]:
    """Returns the texts of a command. Raises BadParameter for none, InvalidRequest naming a line that cannot be read."""
    found: list[Any] = [*(texts or ()), *(() if file is None else read_texts(file))]
    if not found:
        raise typer.BadParameter("expected texts, or --file")
    return found


def read_texts(file: Path) -> list[Any]:
    """Reads one text a line; in a .jsonl file each line is a string or an object with `text` or `messages`."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if file.suffix != ".jsonl":
        return lines
    return [_text(load_json(line, f"{file.name}, line {i}"), file, i) for i, line in enumerate(lines, start=1)]


def _text(value: Any, file: Path, number: int) -> Any:
    found = (value.get("text") or value.get("messages")) if isinstance(value, dict) else value
    if not isinstance(found, str | list) or not found:
        raise InvalidRequest(f"{file.name}, line {number}: expected a text, or an object with `text` or `messages`")
    return found
