"""`steer dictionaries`: sparse autoencoders of the server, to search and to take vectors from."""

from typing import Annotated

import typer

from app.cli.options import Description, NewName, TextFile, Texts, given_texts
from app.cli.output.tables import optional, text_table
from app.cli.output.terminal import Output, client_command, console, shown
from steering.client import Client

dictionaries = typer.Typer(
    no_args_is_help=True, help="Sparse autoencoders that the operator registered: list, search, vector."
)
Dictionary = Annotated[str, typer.Argument(help="Name of the dictionary.")]


@client_command(dictionaries, "list")
def list_all(client: Client) -> Output:
    """List the dictionaries of the server."""
    found = client.list_dictionaries()
    yield found
    rows = [
        [one.name, f"{one.layer}", f"{one.features}", one.architecture or "", one.problem or "usable"]
        for one in found.data
    ]
    yield text_table(("name", "layer", "features", "architecture", ""), rows, "none")


@client_command(dictionaries)
def search(
    client: Client,
    name: Dictionary,
    texts: Texts = None,
    file: TextFile = None,
    vector: Annotated[str | None, typer.Option(help="Find features near this vector.")] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="A text to compare with; repeatable. Default: neutral texts.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many features to list.")] = 20,
    min_output_score: Annotated[
        float | None, typer.Option(help="List only features that make the model say what they promote.")
    ] = None,
) -> Output:
    """Find features near a vector, or more active in texts than in others."""
    given = None if vector is not None else given_texts(texts, file)
    found = client.search_dictionary(
        name, vector=vector, texts=given, against=against, top=top, min_output_score=min_output_score
    )
    yield found
    rows = [
        [
            f"{one.feature}",
            f"{one.score:+.3f}",
            optional(one.output_score, ".3f"),
            " ".join(token.text.strip() for token in one.promoted),
        ]
        for one in found.features
    ]
    yield text_table(("feature", "score", "output score", "promotes"), rows, "none")


@client_command(dictionaries)
def vector(
    client: Client,
    dictionary: Dictionary,
    feature: Annotated[int, typer.Argument(help="Number of the feature.")],
    name: NewName,
    description: Description = "",
) -> None:
    """Store a feature as a vector."""
    stored = client.feature_vector(dictionary, name, feature, description=description)
    console.print(shown(f"stored {stored.id} at layer {', '.join(map(str, stored.layers))}"))
