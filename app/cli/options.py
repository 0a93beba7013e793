"""Declares the arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option


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
