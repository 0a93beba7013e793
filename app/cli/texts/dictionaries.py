"""`steer dictionaries`: sparse autoencoders of the server, to search and to take vectors from."""

from typing import Annotated

import typer

from app.cli.output.tables import text_table
from app.cli.output.terminal import LOCAL, AsJson, Key, Url, client_of, console, print_json, shown
from app.cli.texts.sources import TextFile, Texts, given_texts

dictionaries = typer.Typer(
    no_args_is_help=True, help="Sparse autoencoders that the operator registered: list, search, vector."
)
Dictionary = Annotated[str, typer.Argument(help="Name of the dictionary.")]


@dictionaries.command("list")
def list_all(as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """List the dictionaries of the server."""
    with client_of(url, key) as client:
        found = client.list_dictionaries()
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    rows = [
        [one.name, f"{one.layer}", f"{one.features}", one.architecture or "", one.problem or "usable"]
        for one in found.data
    ]
    console.print(text_table(("name", "layer", "features", "architecture", ""), rows) if rows else "none")


@dictionaries.command()
def search(  # noqa: PLR0913, PLR0917 - one option a field
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
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Find features near a vector, or more active in texts than in others."""
    given = None if vector is not None else given_texts(texts, file)
    with client_of(url, key) as client:
        found = client.search_dictionary(
            name, vector=vector, texts=given, against=against, top=top, min_output_score=min_output_score
        )
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    rows = [
        [
            f"{one.feature}",
            f"{one.score:+.3f}",
            "" if one.output_score is None else f"{one.output_score:.3f}",
            " ".join(token.text.strip() for token in one.promoted),
        ]
        for one in found.features
    ]
    console.print(text_table(("feature", "score", "output score", "promotes"), rows) if rows else "none")


@dictionaries.command()
def vector(
    dictionary: Dictionary,
    feature: Annotated[int, typer.Argument(help="Number of the feature.")],
    name: Annotated[str, typer.Argument(help="Name of the new vector.")],
    description: Annotated[str, typer.Option(help="Description of the vector.")] = "",
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Store a feature as a vector."""
    with client_of(url, key) as client:
        stored = client.feature_vector(dictionary, name, feature, description=description)
    console.print(shown(f"stored {stored.id} at layer {', '.join(map(str, stored.layers))}"))
