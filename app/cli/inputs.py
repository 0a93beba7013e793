"""Declares the options that commands share, and converts what was given to the form of the API."""

import json
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ValidationError
from typer import Argument, BadParameter, Exit, Option

from app.cli.terminal import shown, stderr
from app.core.settings import Settings
from steering.concepts.loader import read_prompts
from steering.errors import InvalidRequest
from steering.strict_json import load_json


def file_option(help_text: str, *names: str) -> Any:
    """Returns the declaration of an option that takes the path of an existing file."""
    return Option(*names, exists=True, dir_okay=False, help=help_text)


def file_argument(help_text: str) -> Any:
    """Returns the declaration of an argument that takes the path of an existing file."""
    return Argument(exists=True, dir_okay=False, help=help_text)


VectorName = Annotated[str, Argument(help="The vector: name, or name@version.")]
NewName = Annotated[str, Argument(help="Name of the new vector.")]
Description = Annotated[str, Option(help="Description of the vector.")]
Prompt = Annotated[str, Argument(help="The prompt.")]
Steer = Annotated[
    list[str] | None,
    Option("--steer", metavar="NAME=STRENGTH", help="Steer with a vector; repeatable. Strength in natural scales."),
]
Layers = Annotated[str, Option(help="recommended, all, 12,13 or 10:16 (half-open).")]
ListedLayers = Annotated[str, Option(help="all, or 12,13.")]
Steering = Annotated[
    str | None, Option(metavar="JSON", help="Interventions as the API takes them; @FILE reads them from a file.")
]
Raw = Annotated[bool, Option("--raw", help="Continue the text without the chat template.")]
System = Annotated[str | None, Option(help="A system message before the prompt.")]
Texts = Annotated[list[str] | None, Argument(help="Texts to read.", show_default=False)]
TextFile = Annotated[
    Path | None, file_option("More texts: one a line, or .jsonl with a `text` or `messages` per line.", "--file")
]


N = TypeVar("N", int, float)


def given(**fields: Any) -> dict[str, Any]:
    """Returns the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def prompt_fields(prompt: str, raw: bool, system: str | None) -> dict[str, Any]:
    """Returns a raw prompt, or messages with the prompt as the user's."""
    if raw:
        return {"prompt": prompt}
    before = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*before, {"role": "user", "content": prompt}]}


def text_of(file: Path) -> str:
    """Reads a text file, without the byte order mark that spreadsheets write. Raises InvalidRequest where it is not UTF-8."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file.name} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def prompts_of(file: Path | None) -> list[Any] | None:
    """Reads the prompts of an evaluation as conversations. Raises InvalidRequest with the number of a line."""
    if file is None:
        return None
    lines = StringIO(text_of(file), newline=None)
    return [[{"role": "user", "content": text}] for text in read_prompts(lines, file.name)]


def given_texts(texts: list[str] | None, file: Path | None) -> list[Any]:
    """Returns the texts of a command. Raises BadParameter for none, InvalidRequest naming a line that cannot be read."""
    found: list[Any] = [*(texts or ()), *(() if file is None else read_texts(file))]
    if not found:
        raise BadParameter("expected texts, or --file")
    return found


def read_texts(file: Path) -> list[Any]:
    """Reads one text a line; in a .jsonl file each line is a string or an object with `text` or `messages`."""
    lines = [line for line in text_of(file).splitlines() if line.strip()]
    if file.suffix != ".jsonl":
        return lines
    return [_text(load_json(line, f"{file.name}, line {i}"), file, i) for i, line in enumerate(lines, start=1)]


def _text(value: Any, file: Path, number: int) -> Any:
    found = (value.get("text") or value.get("messages")) if isinstance(value, dict) else value
    if not isinstance(found, str | list) or not found:
        raise InvalidRequest(f"{file.name}, line {number}: expected a text, or an object with `text` or `messages`")
    return found


def position_of(text: str) -> str | int:
    """Converts a position to the API's form."""
    return int(text) if text.lstrip("-").isdigit() else text


def numbers(text: str, option: str, kind: type[N]) -> list[N]:
    """Parses numbers such as "-1,0,0.5". kind: int or float. Raises BadParameter naming the option."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise BadParameter(f"expected {what} separated by commas, got {text!r}", param_hint=option) from None


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
        raise BadParameter(f"expected recommended, all, 12,13 or 10:16, got {text!r}", param_hint="--layers") from None


def steering_of(
    steer: Iterable[str] | None = None,
    layers: str = "recommended",
    profile: str | None = None,
    steering: str | None = None,
    hold: Iterable[str] | None = None,
    *,
    share_dose: bool = False,
) -> Any:
    """Converts --steer NAME=STRENGTH, --hold NAME=SCORE, --profile and --steering JSON to the API's form; None without any.

    share_dose: of each --steer.
    """
    shared = {"share_dose": True} if share_dose else {}
    interventions: list[Any] = []
    for name, strength in (_named_number(one, "NAME=STRENGTH", "--steer", "1") for one in steer or ()):
        interventions.append({"vector": name, "strength": strength, "layers": layers_of(layers), **shared})
    for name, score in (_named_number(one, "NAME=SCORE", "--hold") for one in hold or ()):
        interventions.append({"vector": name, "layers": layers_of(layers), "hold": {"score": score}})
    if steering is not None:
        try:
            text = text_of(Path(steering[1:])) if steering.startswith("@") else steering
            written = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadParameter(f"not JSON: {error}", param_hint="--steering") from None
        interventions += written if isinstance(written, list) else [written]
    if profile is not None:
        return {"profile": profile, "interventions": interventions}
    return interventions or None


def _named_number(text: str, form: str, option: str, default: str = "") -> tuple[str, float]:
    name, equals, number = text.partition("=")
    try:
        return name, float(number if equals else default)
    except ValueError:
        raise BadParameter(f"expected {form}, got {text!r}", param_hint=option) from None


def settings_of(options: dict[str, Any]) -> Settings:
    """Returns settings from options and environment. Reports what is invalid and exits with 2."""
    try:
        return Settings(**options)
    except ValidationError as error:
        for finding in error.errors():
            where = ".".join(map(str, finding["loc"])) or "settings"
            stderr.print(shown(f"{where}: {finding['msg'].removeprefix('Value error, ')}", "red"))
        raise Exit(2) from None
