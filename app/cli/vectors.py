"""`steer vectors` and `dictionaries`: concept vectors of a server, and sparse autoencoders to take vectors from."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from typer import Argument, BadParameter, Option, Typer

from app.cli.input.conversion import given_texts, layers_of, steering_of
from app.cli.input.vector_sources import Registration, decoder_row, json_directions
from app.cli.options import Description, NewName, TextFile, Texts, VectorName, file_argument
from app.cli.output.tables import card_lines, card_table, optional, text_table, vectors_table
from app.cli.output.terminal import Output, client_command, console, print_warnings, shown, stderr
from app.core.gguf_format import read_control_vector
from steering.client import Client
from steering.client.results import Vector

vectors = Typer(
    no_args_is_help=True, help="Concept vectors of a server: list, show, similar, combine, export, import, delete."
)
dictionaries = Typer(
    no_args_is_help=True, help="Sparse autoencoders that the operator registered: list, search, vector."
)
Format: TypeAlias = Literal["safetensors", "gguf", "json"]
Dictionary = Annotated[str, Argument(help="Name of the dictionary.")]


@client_command(vectors, "list")
def find(
    client: Client,
    search: Annotated[str | None, Option(help="Part of a name or description.")] = None,
    tag: Annotated[str | None, Option(help="Only those with this tag.")] = None,
) -> Output:
    """List the newest version of each name."""
    filters: dict[str, Any] = {"search": search, "tag": tag, "limit": 100}
    page = client.list_vectors(**filters)
    found, warnings = page.data, [*page.warnings]
    while page.next_cursor is not None:
        page = client.list_vectors(**filters, cursor=page.next_cursor)
        found += page.data
        warnings += page.warnings
    print_warnings(warnings)  # --json prints the vectors alone
    yield found
    yield vectors_table(found) if found else "no vectors yet: steer extract sentiment --concept sentiment"


@client_command(vectors)
def show(client: Client, name: VectorName) -> Output:
    """Show the quality card of a vector by layer."""
    vector = client.get_vector(name)
    yield vector
    yield from card_lines(vector)
    yield card_table(vector)


@client_command(vectors)
def export(
    client: Client,
    name: VectorName,
    output: Annotated[Path | None, Option("--output", "-o", help="File to write; default: name and format.")] = None,
    form: Annotated[Format, Option("--format", help="gguf is a llama.cpp control vector.")] = "safetensors",
    layers: Annotated[str, Option(help="gguf only: recommended, all or 12,13.")] = "recommended",
) -> None:
    """Write a vector to a file. A control vector omits layer 0, which llama.cpp cannot steer."""
    path = output or Path(f"{name.replace('@', '-')}.{form}")
    if form != "gguf" and layers != "recommended":
        raise BadParameter("only allowed with --format gguf", param_hint="--layers")
    if form == "safetensors":
        path.write_bytes(client.export_vector(name))
    elif form == "json":
        path.write_text(client.export_vector_json(name).model_dump_json(indent=2), encoding="utf-8")
    else:
        path.write_bytes(_control_vector(client, name, layers))
    console.print(shown(f"wrote {path}"))


def _control_vector(client: Client, name: str, layers: str) -> bytes:
    wanted = layers_of(layers)
    if isinstance(wanted, dict):
        raise BadParameter("expected recommended, all or 12,13", param_hint="--layers")
    content = client.export_control_vector(name, wanted)
    vector = client.get_vector(name)
    if 0 in (vector.recommended.layers if wanted == "recommended" else vector.layers):
        stderr.print("layer 0 was omitted: llama.cpp cannot steer it", style="yellow")
    console.print("scale 1 of llama.cpp is strength 1 of this server")
    return content


@client_command(vectors, "import")
def import_file(
    client: Client,
    file: Annotated[Path, file_argument("A .safetensors, .gguf or .json file.")],
    name: Annotated[str | None, Option(help="Name of the vector; default: the name in the file.")] = None,
    feature: Annotated[int | None, Option(help="Row of W_dec of a SAELens dictionary.")] = None,
    config: Annotated[
        Path | None, Option(help="SAELens configuration; default: cfg.json in the folder of the file.")
    ] = None,
    layer: Annotated[int | None, Option(help="Zero-based block, if the file does not name it.")] = None,
) -> Output:
    """Import a vector. The server reads only its own safetensors files; other formats are read by this command."""
    given = _given(file, feature, config, layer)
    vector = client.import_vector(file.read_bytes(), name=name) if given is None else _register(client, given, name)
    yield vector
    yield from card_lines(vector)


def _register(client: Client, given: Registration, name: str | None) -> Vector:
    fields = given | {"name": name} if name else given
    if "name" not in fields:
        raise BadParameter("required: the file contains no name", param_hint="--name")
    return client.register_vector(**fields)


def _given(file: Path, feature: int | None, config: Path | None, layer: int | None) -> Registration | None:
    """Reads a file of another tool; None for a file that the server reads."""
    if feature is not None:
        return decoder_row(file, config or file.with_name("cfg.json"), feature, layer)
    if config is not None:
        raise BadParameter("needs --feature", param_hint="--config")
    if file.suffix == ".json":
        return json_directions(file, layer)
    if layer is not None:
        raise BadParameter("not allowed: the file names its layers", param_hint="--layer")
    return {"directions": read_control_vector(file), "tags": ("gguf",)} if file.suffix == ".gguf" else None


@client_command(vectors)
def similar(client: Client, name: VectorName) -> Output:
    """List the other vectors of the model by cosine."""
    found = client.similar_vectors(name)
    print_warnings(found.warnings)  # --json prints the vectors alone
    yield found.data
    rows = [[one.id, f"{one.mean:+.3f}", f"{len(one.cosine)}"] for one in found.data]
    yield text_table(("vector", "mean cosine", "layers"), rows, "no other vector")


@client_command(vectors)
def combine(
    client: Client,
    name: NewName,
    terms: Annotated[list[str], Argument(metavar="NAME=WEIGHT...", help="Vectors and their weights.")],
    orthogonal_to: Annotated[
        list[str] | None, Option(help="Remove the component along this vector; repeatable.")
    ] = None,
    description: Description = "",
) -> None:
    """Store a weighted sum of vectors."""
    weighted = [{"vector": one["vector"], "weight": one["strength"]} for one in steering_of(terms, "all")]
    vector = client.combine_vectors(name, weighted, orthogonal_to=tuple(orthogonal_to or ()), description=description)
    for line in card_lines(vector):
        console.print(line)


@client_command(vectors)
def delete(
    client: Client,
    name: Annotated[str, Argument(help="Name of the vector; all versions are deleted.")],
    force: Annotated[bool, Option(help="Delete it even if a profile uses it.")] = False,
) -> None:
    """Delete all versions of a vector."""
    client.delete_vector(name, force=force)
    console.print(shown(f"deleted {name}"))


@client_command(dictionaries, "list")
def list_dictionaries(client: Client) -> Output:
    """List the dictionaries of the server."""
    found = client.list_dictionaries()
    yield found
    rows = [
        [one.name, f"{one.layer}", f"{one.features}", one.architecture or "", one.problem or "usable"]
        for one in found.data
    ]
    yield text_table(("name", "layer", "features", "architecture", ""), rows, "none")


@client_command(dictionaries, "search")
def search_dictionary(
    client: Client,
    name: Dictionary,
    texts: Texts = None,
    file: TextFile = None,
    vector: Annotated[str | None, Option(help="Find features near this vector.")] = None,
    against: Annotated[
        list[str] | None, Option(help="A text to compare with; repeatable. Default: neutral texts.")
    ] = None,
    top: Annotated[int, Option(help="How many features to list.")] = 20,
    min_output_score: Annotated[
        float | None, Option(help="List only features that make the model say what they promote.")
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


@client_command(dictionaries, "vector")
def store_feature(
    client: Client,
    dictionary: Dictionary,
    feature: Annotated[int, Argument(help="Number of the feature.")],
    name: NewName,
    description: Description = "",
) -> None:
    """Store a feature as a vector."""
    stored = client.feature_vector(dictionary, name, feature, description=description)
    console.print(shown(f"stored {stored.id} at layer {', '.join(map(str, stored.layers))}"))
