"""`steer extract`, `transfer`, `vectors` and `dictionaries`: makes, stores and carries concept vectors."""

import csv
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from rich.table import Table
from typer import Argument, BadParameter, Option, Typer

from app.cli.commands import Output, client_command, with_client
from app.cli.inputs import (
    Description,
    ListedLayers,
    NewName,
    TextFile,
    Texts,
    VectorName,
    file_argument,
    file_option,
    given,
    given_texts,
    layers_of,
    position_of,
    read_texts,
    steering_of,
    text_of,
)
from app.cli.tables import (
    card_lines,
    card_table,
    estimate_text,
    follow,
    optional,
    text_table,
    vectors_table,
    warning_lines,
)
from app.cli.terminal import console, print_warnings, shown, stderr
from app.cli.vector_sources import Registration, decoder_row, json_directions
from app.core.gguf_format import read_control_vector
from steering.client import Client
from steering.client.results import Vector
from steering.concepts.loader import read_pairs
from steering.pairs import PairSet
from steering.pairs import Text as PairText
from steering.schemas.extraction import EffectAnswer, TransferAnswer
from steering.schemas.vectors import VectorAnswer

ONE_SOURCE = "expected one source: --concept, --pairs, --positive with --negative, or --trait with --opposite"

Concept = Annotated[str | None, Option(help="A starter concept, such as sentiment.")]
Seed = Annotated[int, Option(help="Which topics are held out.")]


@with_client
def extract(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    name: NewName,
    concept: Concept = None,
    pairs: Annotated[
        Path | None, file_option("JSON lines or CSV with positive and negative, and prompt or topic if wanted.")
    ] = None,
    positive: Annotated[Path | None, file_option("Positive texts, one a line or .jsonl; unpaired.")] = None,
    negative: Annotated[Path | None, file_option("Negative texts, with --positive.")] = None,
    trait: Annotated[str | None, Option(help="Description of a trait; the model writes the examples.")] = None,
    opposite: Annotated[str | None, Option(help="The opposite of the trait.")] = None,
    method: Annotated[str, Option(help="mean_difference, pca, probe, whitened, trained.")] = "mean_difference",
    position: Annotated[
        str | None,
        Option(help="last, mean, response_mean, or an offset from the end; default: depends on the texts."),
    ] = None,
    layers: ListedLayers = "all",
    holdout: Annotated[float, Option(help="Share of the topics held out for evaluation.")] = 0.3,
    seed: Seed = 0,
    description: Description = "",
    steps: Annotated[int | None, Option(help="Method trained: number of optimization steps.")] = None,
    kl_coefficient: Annotated[
        float | None, Option(help="Method trained: how much neutral answers are spared; 0 for not at all.")
    ] = None,
) -> Output:
    """Extract a vector from contrasting texts and evaluate it on held-out texts."""
    complete = (positive is None) == (negative is None) and (trait is None) == (opposite is None)
    if not complete or [concept, pairs, positive, trait].count(None) != 3:
        raise BadParameter(ONE_SOURCE)
    options: dict[str, Any] = {
        "concept": concept,
        "pairs": None if pairs is None else _pairs_of(pairs),
        "positive": None if positive is None else read_texts(positive),
        "negative": None if negative is None else read_texts(negative),
        "describe": given(trait=trait, opposite=opposite) or None,
        "method": method,
        "position": position_of(position) if position else position,
        "layers": layers_of(layers),
        "holdout": holdout,
        "seed": seed,
        "description": description,
        "training": given(steps=steps, kl_coefficient=kl_coefficient) or None,
    }
    result = follow(client, client.start_extraction(name, **options))
    vector = VectorAnswer.model_validate(result["vector"])
    return vector, card_lines(vector)


def _pairs_of(file: Path) -> list[dict[str, Any]]:
    """Returns the pairs of a file as a request has them. Raises InvalidRequest with the number of a line."""
    found = _read_pairs(file)
    return [
        {"positive": _text(positive), "negative": _text(negative), "topic": topic}
        for (positive, negative), topic in zip(found, found.topics, strict=True)
    ]


def _read_pairs(file: Path) -> PairSet:
    """Reads JSON lines, or a CSV file whose rows have the same rules; empty cells are absent."""
    lines = StringIO(text_of(file), newline="" if file.suffix == ".csv" else None)
    if file.suffix != ".csv":
        return read_pairs(lines, file.name)
    rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(lines)]
    return read_pairs([json.dumps(row) for row in rows], file.name)


def _text(text: PairText) -> Any:
    return text if isinstance(text, str) else [{"role": one.role, "content": one.content} for one in text]


@with_client
def transfer(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    name: Annotated[str, Argument(help="Name of the new vector of the loaded model.")],
    concept: Concept = None,
    pairs: Annotated[Path | None, file_option("Pairs as for `steer extract`, JSON lines or CSV.")] = None,
    anchors: Annotated[
        Path | None, file_option("Texts that both models read, one a line or .jsonl; default: bundled.")
    ] = None,
    from_layer: Annotated[int | None, Option(help="Layer of the second model; default: the best.")] = None,
    to_layer: Annotated[int | None, Option(help="Layer of the loaded model; default: the best.")] = None,
    seed: Seed = 0,
    description: Description = "",
    effect: Annotated[bool, Option("--effect", help="Measure how far it steers, too.")] = False,
    native: Annotated[
        str | None,
        Option(help="With --effect: a vector of the loaded model to compare with; default: that of the pairs."),
    ] = None,
    prompts: Annotated[int, Option(help="With --effect: neutral prompts that are answered.")] = 12,
    dose: Annotated[float, Option(help="With --effect: relative dose of each vector.")] = 0.15,
) -> Output:
    """Carry a direction of the server's second model to the loaded one, and measure what it lost."""
    if (concept is None) == (pairs is None):
        raise BadParameter("expected one of --concept and --pairs")
    options: dict[str, Any] = {
        "concept": concept,
        "pairs": None if pairs is None else _pairs_of(pairs),
        "anchors": None if anchors is None else read_texts(anchors),
        "from_layer": from_layer,
        "to_layer": to_layer,
        "seed": seed,
        "description": description,
        "effect": given(prompts=prompts, relative_dose=dose, native=native) if effect else None,
    }
    found = TransferAnswer.model_validate(follow(client, client.start_transfer(name, **options)))
    return found, _transferred(found)


def _transferred(found: TransferAnswer) -> Iterator[Any]:
    """Yields a table of the directions, the warnings, and lines about the texts."""
    columns = ["AUROC on held-out pairs", *([] if found.effect is None else ["shift of the answers"])]
    table = Table("direction", *columns, title=f"{found.from_model} to {found.vector.model}")
    for name, one in found.auroc.items():
        cells = ["not measured" if one is None else estimate_text(one, ".2f")]
        if found.effect is not None:
            cells.append(_shift(found.effect, name))
        table.add_row(name, *cells)
    yield table
    yield from warning_lines(found.warnings)
    if found.effect is not None:
        yield shown(
            f"shift: {found.effect.prompts} neutral prompts, {found.effect.max_tokens} tokens, relative dose "
            f"{found.effect.relative_dose:g}; native: {found.effect.native or 'fitted to the pairs'}"
        )
    yield shown(
        f"{found.vector.id}: layer {found.from_layer} to layer {found.to_layer}; {found.anchors} anchors, "
        f"{found.explained:.0%} of their variance explained; cosine with the native direction {found.cosine:.2f}"
    )


def _shift(effect: EffectAnswer, name: str) -> str:
    """Describes the shift of one kind of direction; empty for the one of the second model, which steers no answer."""
    if name not in effect.shift:
        return ""
    one = effect.shift[name]
    return "numbers out of range" if one is None else estimate_text(one)


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
    return found, [vectors_table(found) if found else "no vectors yet: steer extract sentiment --concept sentiment"]


@client_command(vectors)
def show(client: Client, name: VectorName) -> Output:
    """Show the quality card of a vector by layer."""
    vector = client.get_vector(name)
    return vector, [*card_lines(vector), card_table(vector)]


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
    return vector, card_lines(vector)


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
    rows = [[one.id, f"{one.mean:+.3f}", f"{len(one.cosine)}"] for one in found.data]
    return found.data, [text_table(("vector", "mean cosine", "layers"), rows, "no other vector")]


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
    rows = [
        [one.name, f"{one.layer}", f"{one.features}", one.architecture or "", one.problem or "usable"]
        for one in found.data
    ]
    return found, [text_table(("name", "layer", "features", "architecture", ""), rows, "none")]


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
    rows = [
        [
            f"{one.feature}",
            f"{one.score:+.3f}",
            optional(one.output_score, ".3f"),
            " ".join(token.text.strip() for token in one.promoted),
        ]
        for one in found.features
    ]
    return found, [text_table(("feature", "score", "output score", "promotes"), rows, "none")]


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
