"""What all commands share: the console, how a function becomes a command, options, and the conversion of what was given."""

import csv
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass
from functools import update_wrapper
from inspect import Parameter, Signature, signature
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, get_args, get_origin

from typer import Argument, BadParameter, Option, Typer

from app.cli.terminal import beside, print_json, print_warnings, stderr
from app.core.process_settings import prepare_for_torch
from steering.client import Client
from steering.client.connection import DEFAULT_URL
from steering.concepts.loader import read_prompts
from steering.errors import InvalidRequest
from steering.strict_json import finite_number, load_json

N = TypeVar("N", int, float)

# How a function becomes a command

Output: TypeAlias = tuple[Any, Iterable[Any] | Callable[[], None]]
"""What a command with --json returns: the data that --json prints, and what is printed without it.

Either may be a function. Only the one that is needed is called: it returns the data, or prints.
"""
Connect: TypeAlias = Callable[..., Client]
"""Opens a client that is closed when the command ends; see `client_of` for what --local takes."""


@contextmanager
def client_of(url: str, key: str | None, local: bool = False, interventions: Any = None) -> Iterator[Client]:
    """Yields a client for the options of a command, with --local of a model in this process.

    STEERING_NAMESPACE names the namespace of every command of an admin.
    interventions: with --local, the starter vectors that they name are extracted if they are missing.
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


def command_of(group: Typer, name: str | None = None) -> Callable[[Callable[..., Output | None]], Callable[..., None]]:
    """Adds a function to a group as a command, see `command`."""
    return lambda function: group.command(name)(command(function))


def _shared_options(
    as_json: Annotated[bool, Option("--json", help="Print the server's response as JSON.")] = False,
    local: Annotated[bool, Option("--local", help="Run the model in this process instead of asking a server.")] = False,
    url: Annotated[str, Option("--url", envvar="STEERING_URL", help="Address of the server.")] = DEFAULT_URL,
    key: Annotated[str | None, Option("--key", envvar="STEERING_KEY", help="API key of the server.")] = None,
) -> None:
    """Declares the options that `command` adds."""


def command(function: Callable[..., Output | None]) -> Callable[..., None]:
    """Returns what typer calls. Options are those of the function, and --json if it returns Output.

    A first parameter of type Client is opened from the options --url and --key. One of type Connect has --local, too; the
    function calls it once what it was given is checked. A text in Annotated is the help of an option, or of an argument where
    there is no default. A parameter whose type is a dataclass stands for the fields of that class.
    """
    declared = signature(function)
    own = list(declared.parameters.values())
    connections = {Client: ("url", "key"), Connect: ("local", "url", "key")}
    connection = connections.get(own[0].annotation, ()) if own else ()
    own = own[bool(connection) :]
    has_output = declared.return_annotation is not None
    groups = {one.name: group for one in own if (group := _group(one.annotation)) is not None}

    def run(**arguments: Any) -> None:
        _check_given(arguments)
        connecting = {name: arguments.pop(name) for name in connection}
        as_json, shown_on = has_output and arguments.pop("as_json"), beside(*arguments.values())
        if as_json and shown_on is stderr:
            raise BadParameter("standard output has the file that is written", param_hint="--json")
        for name, group in groups.items():
            arguments[name] = group(**{field.name: arguments.pop(field.name) for field in fields(group)})
        with ExitStack() as stack:  # closes the client when the output has been printed

            def connect(interventions: Any = None) -> Client:
                return stack.enter_context(client_of(**connecting, interventions=interventions))

            first = [connect if "local" in connection else connect()] if connection else []
            output = function(*first, **arguments)
            if output is None:
                return
            data, printed = output
            if as_json:
                print_json(data() if callable(data) else data)
            elif callable(printed):
                printed()
            else:
                for item in printed:
                    shown_on.print(item)

    shared = signature(_shared_options).parameters
    added = [shared[name] for name in (("as_json", *connection) if has_output else connection)]
    options = [option for one in [*own, *added] for option in _options(one)]
    run.__signature__ = Signature(options)  # type: ignore[attr-defined] # read by typer
    return update_wrapper(run, function)


def _check_given(arguments: Mapping[str, Any]) -> None:
    """Raises BadParameter for a number that is not finite, a text that is not UTF-8 and a key that is not ASCII, which cannot be sent."""
    for name, value in arguments.items():
        hint = name.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise BadParameter(f"expected a finite number, got {one}", param_hint=hint)
            if isinstance(one, str):
                try:
                    one.encode("ascii" if name == "key" else "utf-8")
                except UnicodeEncodeError as error:
                    found = f"expected {error.encoding.upper()} text, got {one[error.start]!r} in it"
                    raise BadParameter(found, param_hint=hint) from None


def _group(annotation: Any) -> type[Any] | None:
    return annotation if isinstance(annotation, type) and is_dataclass(annotation) else None


def _options(parameter: Parameter) -> Iterator[Parameter]:
    annotation = parameter.annotation
    if (group := _group(annotation)) is not None:
        for option in signature(group).parameters.values():
            yield from _options(option)
        return
    if get_origin(annotation) is Annotated and isinstance(get_args(annotation)[1], str):
        kind, text = get_args(annotation)
        declaration = Argument(help=text) if parameter.default is Parameter.empty else Option(help=text)
        annotation = Annotated[kind, declaration]
    yield parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=annotation)


# Options that commands share, and what was given in the form of the API


def file_option(help_text: str, *names: str) -> Any:
    """Returns the declaration of an option that takes the path of an existing file."""
    return Option(*names, exists=True, dir_okay=False, help=help_text)


def file_argument(help_text: str) -> Any:
    """Returns the declaration of an argument that takes the path of an existing file."""
    return Argument(exists=True, dir_okay=False, help=help_text)


def output_option(help_text: str, *names: str, metavar: str | None = None) -> Any:
    """Returns the declaration of an option that takes the path of a file to write: it can be made before any work is done, or is there,
    such as /dev/stdout."""

    def in_folder(value: Path | None) -> Path | None:
        if value is not None and not value.exists() and not os.access(value.parent, os.W_OK | os.X_OK):
            raise BadParameter(f"cannot write {value}: {value.parent} is no folder that can be written")
        return value

    return Option(*names, dir_okay=False, writable=True, callback=in_folder, metavar=metavar, help=help_text)


VectorName = Annotated[str, "The vector: name, or name@version."]
NewName = Annotated[str, "Name of the new vector."]
Description = Annotated[str, "Description of the vector."]
Steer = Annotated[
    list[str] | None,
    Option("--steer", metavar="NAME=STRENGTH", help="Steer with a vector; repeatable. Strength in natural scales."),
]
Layers = Annotated[str, "recommended, all, 12,13 or 10:16 (half-open)."]
SteerLayers = Annotated[
    str | None, "Where --steer acts: recommended, all, 12,13 or 10:16 (half-open); default: recommended."
]
ListedLayers = Annotated[str, "all, or 12,13."]
Steering = Annotated[
    str | None, Option(metavar="JSON", help="Interventions as the API takes them; @FILE reads them from a file.")
]
Profile = Annotated[str | None, "A profile stored on the server."]
Texts = Annotated[list[str] | None, Argument(help="Texts to read.", show_default=False)]
TextFile = Annotated[
    Path | None, file_option("More texts: one a line, or .jsonl with a `text` or `messages` per line.", "--file")
]


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompt of a command."""

    prompt: Annotated[str, "The prompt."]
    raw: Annotated[bool, Option("--raw", help="Continue the text without the chat template.")] = False
    system: Annotated[str | None, "A system message before the prompt."] = None
    prefill: Annotated[str | None, "How the answer begins, which is continued."] = None

    def fields(self) -> dict[str, Any]:
        """Returns a raw prompt, or messages with the prompt as the user's. Raises BadParameter for a raw prompt with other messages."""
        if self.raw:
            for hint, message in (("--system", self.system), ("--prefill", self.prefill)):
                if message is not None:
                    raise BadParameter("--raw has no messages; put it into the prompt", param_hint=hint)
            return {"prompt": self.prompt}
        before = [] if self.system is None else [{"role": "system", "content": self.system}]
        messages = [*before, {"role": "user", "content": self.prompt}]
        if self.prefill is None:
            return {"messages": messages}
        return {"messages": [*messages, {"role": "assistant", "content": self.prefill}], "continue_final_message": True}


def whole_list(read: Callable[..., Any], **filters: Any) -> list[Any]:
    """Reads all pages of a list. Its warnings go to stderr, since --json prints the items alone."""
    found, cursor = list[Any](), None
    while True:
        page = read(**filters, cursor=cursor)
        print_warnings(page.warnings)
        found += page.data
        if (cursor := page.next_cursor) is None:
            return found


def given(**fields: Any) -> dict[str, Any]:
    """Returns the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def text_of(file: Path) -> str:
    """Reads a text file, without the byte order mark that spreadsheets write. Raises InvalidRequest where it is not UTF-8."""
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file.name} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def lines_of(file: Path) -> Iterator[tuple[int, str]]:
    """Yields the lines of a text file that are not blank, with their numbers. Raises InvalidRequest where it is not UTF-8.

    Lines end as JSON lines do: `str.splitlines` also splits at characters that a text may have.
    """
    for number, line in enumerate(StringIO(text_of(file), newline=None), start=1):
        if line.strip():
            yield number, line.removesuffix("\n")


def csv_rows(file: Path) -> tuple[Sequence[str], list[tuple[int, dict[str, Any]]]]:
    """Reads the names of the columns of a CSV file, and its rows, each with the line where it ends. Raises InvalidRequest where it cannot be read."""
    reader = csv.DictReader(StringIO(text_of(file), newline=""))
    try:
        rows = [(reader.reader.line_num, row) for row in reader]  # its own number passes over blank lines
    except csv.Error as error:
        raise InvalidRequest(f"{file.name}, line {reader.line_num + 1}: not readable as CSV: {error}") from None
    return reader.fieldnames or (), rows


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
    """Reads the texts of `texts_with_topics`."""
    return [text for text, _ in texts_with_topics(file)]


def texts_with_topics(file: Path) -> list[tuple[Any, str | None]]:
    """Reads one text a line; in a .jsonl file each line is a string or an object with `text` or `messages`, and `topic` if wanted."""
    if file.suffix != ".jsonl":
        return [(line, None) for _, line in lines_of(file)]
    texts = []
    for number, line in lines_of(file):
        where = f"{file.name}, line {number}"
        value = load_json(line, where)
        text = (value.get("text") or value.get("messages")) if isinstance(value, dict) else value
        if not isinstance(text, str | list) or not text:
            raise InvalidRequest(f"{where}: expected a text, or an object with `text` or `messages`")
        texts.append((text, value.get("topic") if isinstance(value, dict) else None))
    return texts


def position_of(text: str) -> Any:
    """Converts a position to the API's form, whose model says which words it may be. "span:the phrase" is the tokens of a phrase,
    "attending:the phrase" the token that attends to it most."""
    if text.startswith("span:"):
        return {"span": text.removeprefix("span:")}
    if text.startswith("attending:"):
        return {"span": text.removeprefix("attending:"), "read": "attending"}
    try:
        return int(text)
    except ValueError:
        return text


def numbers(text: str, option: str, kind: Callable[[str], N]) -> list[N]:
    """Parses numbers such as "-1,0,0.5". kind: int or finite_number. Raises BadParameter naming the option."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "finite numbers"
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
    steer: Sequence[str] | None = None,
    layers: str | None = None,
    profile: str | None = None,
    steering: str | None = None,
    hold: Sequence[str] | None = None,
    *,
    share_dose: bool = False,
) -> Any:
    """Converts --steer NAME=STRENGTH, --hold NAME=SCORE, --profile and --steering JSON to the API's form; None without any. The empty
    list of --steering '[]' is no steering at all.

    layers: of each --steer and --hold; None is "recommended". share_dose: of each --steer. Raises BadParameter for either without them.
    """
    if layers is not None and not steer and not hold:
        raise BadParameter(f"layers {layers!r} are where --steer or --hold acts, and neither was given")
    if share_dose and not steer:
        raise BadParameter("is of --steer, which was not given", param_hint="--share-dose")
    where = layers_of("recommended" if layers is None else layers)
    shared = {"share_dose": True} if share_dose else {}
    interventions: list[Any] = []
    for name, strength in (_named_number(one, "NAME=STRENGTH", "--steer", "1") for one in steer or ()):
        interventions.append({"vector": name, "strength": strength, "layers": where, **shared})
    for name, score in (_named_number(one, "NAME=SCORE", "--hold") for one in hold or ()):
        interventions.append({"vector": name, "layers": where, "hold": {"score": score}})
    if steering is not None:
        text = text_of(Path(steering[1:])) if steering.startswith("@") else steering
        try:
            written = load_json(text, "--steering")
        except InvalidRequest as error:
            raise BadParameter(error.message) from None
        listed = written if isinstance(written, list) else [written]
        if not all(isinstance(one, dict) for one in listed):
            raise BadParameter("expected an intervention or a list of them, each an object", param_hint="--steering")
        interventions += listed
    if profile is not None:
        return {"profile": profile, "interventions": interventions}
    return None if not interventions and steering is None else interventions


def _named_number(text: str, form: str, option: str, default: str = "") -> tuple[str, float]:
    name, equals, number = text.partition("=")
    try:
        return name, finite_number(number if equals else default)
    except ValueError:
        raise BadParameter(f"expected {form} with a finite number, got {text!r}", param_hint=option) from None
