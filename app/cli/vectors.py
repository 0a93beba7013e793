"""`steer extract`, `distil`, `transfer`, `vectors` and `dictionaries`: makes, stores and carries concept vectors, also from files of other tools."""

import json
from collections.abc import Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError
from rich.table import Table
from typer import Argument, BadParameter, Option, Typer

from app.cli import tables
from app.cli.commands import (
    Description,
    ListedLayers,
    NewName,
    Output,
    TextFile,
    Texts,
    VectorName,
    command,
    command_of,
    csv_rows,
    file_argument,
    file_option,
    given,
    given_texts,
    layers_of,
    output_option,
    position_of,
    read_texts,
    steering_of,
    text_of,
    texts_with_topics,
    whole_list,
)
from app.cli.terminal import console, print_warnings, shown, stderr
from app.core.gguf_format import read_control_vector
from app.core.process_settings import prepare_for_torch
from steering.cards import Estimate
from steering.client import Client
from steering.concepts.loader import read_pairs
from steering.errors import InvalidRequest
from steering.pairs import Text as PairText
from steering.schemas.extraction import TransferAnswer
from steering.schemas.vectors import RegisterRequest, VectorAnswer, VectorExport
from steering.strict_json import load_json

ONE_SOURCE = "expected one source: --concept, --pairs, --positive with --negative, or --trait with --opposite"
NO_VECTOR = "no vectors yet: steer extract sentiment --concept sentiment"

Concept = Annotated[str | None, "A starter concept, such as sentiment."]
AnyConcept = Annotated[str | None, "A concept of `steer concepts list`, such as sentiment, hedging or pirate."]
Seed = Annotated[int, "Which topics are held out."]
Format: TypeAlias = Literal["safetensors", "gguf", "json"]
Dictionary = Annotated[str, "Name of the dictionary."]
vectors = Typer(
    no_args_is_help=True, help="Concept vectors of a server: list, show, similar, combine, export, import, delete."
)
dictionaries = Typer(
    no_args_is_help=True, help="Sparse autoencoders that the operator registered: list, search, vector."
)


@command
def extract(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    name: NewName,
    concept: AnyConcept = None,
    pairs: Annotated[
        Path | None, file_option("JSON lines or CSV with positive and negative, and prompt or topic if wanted.")
    ] = None,
    positive: Annotated[Path | None, file_option("Positive texts, one a line or .jsonl with topics; unpaired.")] = None,
    negative: Annotated[Path | None, file_option("Negative texts, with --positive.")] = None,
    trait: Annotated[str | None, "Description of a trait; the model writes the examples."] = None,
    opposite: Annotated[str | None, "The opposite of the trait."] = None,
    method: Annotated[
        str, "mean_difference, pca, probe, whitened, rfm, affine, null_space, conceptor, clas, trained."
    ] = "mean_difference",
    position: Annotated[
        str | None,
        "last, mean, response_mean, an offset from the end, span:PHRASE or attending:PHRASE; default: depends on the texts.",
    ] = None,
    phase: Annotated[
        list[str] | None, Option(help="The mean over the tokens in this phase: thinking, answer, tool; repeatable.")
    ] = None,
    card_position: Annotated[Literal["max"] | None, "Also score held-out texts by their largest token."] = None,
    layers: ListedLayers = "all",
    holdout: Annotated[float, "Share of the topics held out for evaluation."] = 0.3,
    seed: Seed = 0,
    description: Description = "",
    steps: Annotated[int | None, "Method trained: number of optimization steps."] = None,
    kl_coefficient: Annotated[
        float | None, "Method trained: how much neutral answers are spared; 0 for not at all."
    ] = None,
) -> Output:
    """Extract a vector from contrasting texts and evaluate it on held-out texts."""
    complete = (positive is None) == (negative is None) and (trait is None) == (opposite is None)
    if not complete or [concept, pairs, positive, trait].count(None) != 3:
        raise BadParameter(ONE_SOURCE)
    options: dict[str, Any] = {"concept": concept, "pairs": pairs and _pairs_of(pairs), "method": method}
    if positive and negative:
        options |= _list_of(positive, "positive") | _list_of(negative, "negative")
    options |= {"layers": layers_of(layers), "position": position and position_of(position), "phase": phase or None}
    options |= {"holdout": holdout, "seed": seed, "description": description, "card_position": card_position}
    options["describe"] = given(trait=trait, opposite=opposite) or None
    options["training"] = given(steps=steps, kl_coefficient=kl_coefficient) or None
    vector = tables.followed(client, client.start_extraction(name, **options), TypeAdapter(VectorAnswer), "vector")
    return vector, tables.card_lines(vector)


def _pairs_of(file: Path) -> list[dict[str, Any]]:
    """Reads the pairs of JSON lines, or of a CSV file whose rows have the same rules; empty cells are absent.

    Raises InvalidRequest with the number of a line.
    """
    lines: Iterable[str] = StringIO(text_of(file), newline=None)
    if file.suffix == ".csv":
        rows = {at: {name: cell for name, cell in row.items() if cell} for at, row in csv_rows(file)[1]}
        lines = [json.dumps(rows[at]) if at in rows else "" for at in range(1, max(rows, default=0) + 1)]
    pairs = read_pairs(lines, file.name)
    return [
        {"positive": _text(positive), "negative": _text(negative), "topic": topic}
        for (positive, negative), topic in zip(pairs, pairs.topics, strict=True)
    ]


def _list_of(file: Path, name: str) -> dict[str, Any]:
    """Reads the texts of one side with their topics, if they have any. Raises InvalidRequest where only some have one."""
    rows = texts_with_topics(file)
    topics = [topic for _, topic in rows if topic is not None]
    if topics and len(topics) < len(rows):
        raise InvalidRequest(
            f"{file.name}: {len(topics)} of {len(rows)} lines have a topic; expected all or none", param="topics"
        )
    return {name: [text for text, _ in rows], f"{name}_topics": topics or None}


def _text(text: PairText) -> Any:
    return text if isinstance(text, str) else [{"role": one.role, "content": one.content} for one in text]


@command
def distil(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    name: NewName,
    instruction: Annotated[
        str | None, Argument(help="The instruction, as a system message would have it.", show_default=False)
    ] = None,
    concept: Annotated[str | None, "A concept in words, in place of an instruction, such as pirate."] = None,
    prompts: Annotated[Path | None, file_option("What the model answers, one a line; default: bundled.")] = None,
    layers: Annotated[str | None, "Layers such as 12,13; default: six, from a third on."] = None,
    rank: Annotated[int, "Directions of the map at each layer, up to 16."] = 16,
    max_tokens: Annotated[int, "Tokens of each answer."] = 64,
    holdout: Annotated[float, "Share of the prompts that measure the maps."] = 0.25,
    seed: Seed = 0,
    description: Description = "",
) -> Output:
    """Distil an instruction into a vector: its effect without its tokens, with the operation apply."""
    if (instruction is None) == (concept is None):
        raise BadParameter("expected one of INSTRUCTION and --concept")
    options: dict[str, Any] = {"prompts": prompts and read_texts(prompts), "layers": layers and layers_of(layers)}
    options |= {"rank": rank, "max_tokens": max_tokens, "holdout": holdout, "seed": seed, "description": description}
    options |= given(concept=concept)
    started = client.start_distil(name, instruction, **options)
    vector = tables.followed(client, started, TypeAdapter(VectorAnswer), "vector")
    return vector, tables.card_lines(vector)


@command
def transfer(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    name: Annotated[str, "Name of the new vector of the loaded model."],
    concept: Concept = None,
    pairs: Annotated[Path | None, file_option("Pairs as for `steer extract`, JSON lines or CSV.")] = None,
    anchors: Annotated[
        Path | None, file_option("Texts that both models read, one a line or .jsonl; default: bundled.")
    ] = None,
    from_layer: Annotated[int | None, "Layer of the second model; default: the best."] = None,
    to_layer: Annotated[int | None, "Layer of the loaded model; default: the best."] = None,
    seed: Seed = 0,
    description: Description = "",
    effect: Annotated[bool, Option("--effect", help="Measure how far it steers, too.")] = False,
    native: Annotated[
        str | None, "With --effect: a vector of the loaded model to compare with; default: that of the pairs."
    ] = None,
    prompts: Annotated[int, "With --effect: neutral prompts that are answered."] = 12,
    dose: Annotated[float, "With --effect: relative dose of each vector."] = 0.15,
) -> Output:
    """Carry a direction of the server's second model to the loaded one, and measure what it lost."""
    if (concept is None) == (pairs is None):
        raise BadParameter("expected one of --concept and --pairs")
    options: dict[str, Any] = {"concept": concept, "pairs": pairs and _pairs_of(pairs)}
    options |= {"anchors": anchors and read_texts(anchors), "from_layer": from_layer, "to_layer": to_layer}
    options |= {"seed": seed, "description": description}
    if effect:
        options["effect"] = given(prompts=prompts, relative_dose=dose, native=native)
    found = tables.followed(client, client.start_transfer(name, **options), TypeAdapter(TransferAnswer))
    return found, _transferred(found)


def _transferred(found: TransferAnswer) -> Iterator[Any]:
    """Yields a table of the directions, the warnings, and lines about the texts."""
    effect = found.effect
    columns = ["AUROC on held-out pairs", *([] if effect is None else ["shift of the answers"])]
    table = Table("direction", *columns, title=f"{found.from_model} to {found.vector.model}")
    for name, one in found.auroc.items():
        cells = ["not measured" if one is None else tables.estimate_text(one, ".2f")]
        if effect is not None and name in effect.shift:  # the direction of the second model steers no answer
            cells.append(_shift(effect.shift[name], effect.chance))
        elif effect is not None and name == "random" and effect.chance is not None:
            cells.append(f"one in twenty beyond {effect.chance:.2f}")
        table.add_row(name, *cells)
    yield table
    yield from tables.warning_lines(found.warnings)
    if effect is not None:
        yield shown(
            f"shift: {effect.prompts} neutral prompts, {effect.max_tokens} tokens, relative dose "
            f"{effect.relative_dose:g}; native: {effect.native or 'fitted to the pairs'}"
        )
    yield shown(
        f"{found.vector.id}: layer {found.from_layer} to layer {found.to_layer}; {found.anchors} anchors, "
        f"{found.explained:.0%} of their variance explained; cosine with the native direction {found.cosine:.2f}"
    )


def _shift(shift: Estimate | None, chance: float | None) -> str:
    """Formats a shift with its margin: by how much the lower end of its interval exceeds chance."""
    if shift is None:
        return "numbers out of range"
    margin = "" if chance is None or shift.interval is None else f", margin {shift.interval[0] - chance:+.2f}"
    return tables.estimate_text(shift) + margin


@command_of(vectors, "list")
def find(
    client: Client,
    search: Annotated[str | None, "Part of a name or description."] = None,
    tag: Annotated[str | None, "Only those with this tag."] = None,
) -> Output:
    """List the newest version of each name."""
    found = whole_list(client.list_vectors, search=search, tag=tag)
    return found, [tables.vectors_table(found) if found else NO_VECTOR]


@command_of(vectors)
def show(client: Client, name: VectorName) -> Output:
    """Show the quality card of a vector by layer."""
    vector = client.get_vector(name)
    return vector, [*tables.card_lines(vector), tables.card_table(vector)]


@command_of(vectors)
def export(
    client: Client,
    name: VectorName,
    output: Annotated[Path | None, output_option("File to write; default: name and format.", "--output", "-o")] = None,
    form: Annotated[Format, Option("--format", help="gguf is a llama.cpp control vector.")] = "safetensors",
    layers: Annotated[str, "gguf only: recommended, all or 12,13."] = "recommended",
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
    stderr.print(shown(f"wrote {path}"))


def _control_vector(client: Client, name: str, layers: str) -> bytes:
    wanted = layers_of(layers)
    if isinstance(wanted, dict):
        raise BadParameter("expected recommended, all or 12,13", param_hint="--layers")
    content = client.export_control_vector(name, wanted)
    vector = client.get_vector(name)
    if 0 in (vector.recommended.layers if wanted == "recommended" else vector.layers if wanted == "all" else ()):
        stderr.print("layer 0 was omitted: llama.cpp cannot steer it", style="yellow")
    stderr.print("scale 1 of llama.cpp is strength 1 of this server")
    return content


@command_of(vectors, "import")
def import_file(
    client: Client,
    file: Annotated[Path, file_argument("A .safetensors, .gguf or .json file.")],
    name: Annotated[str | None, "Name of the vector; default: the name in the file."] = None,
    feature: Annotated[
        int | None, "Row of W_dec of a SAELens dictionary, with cfg.json in the folder of its sae_weights.safetensors."
    ] = None,
    layer: Annotated[int | None, "Zero-based block, if a .json file does not name it."] = None,
) -> Output:
    """Import a vector. The server reads only its own safetensors files; other formats are read by this command."""
    fields: dict[str, Any] | None = None  # of a file of another tool
    if layer is not None and file.suffix != ".json":
        raise BadParameter("not allowed: the file names its layers", param_hint="--layer")
    if feature is not None:
        fields = decoder_row(file, feature)
    elif file.suffix == ".json":
        fields = json_directions(file, layer)
    elif file.suffix == ".gguf":
        fields = {"directions": read_control_vector(file), "tags": ("gguf",)}
    if fields is None:
        vector = client.import_vector(file.read_bytes(), name=name)
        return vector, tables.card_lines(vector)
    fields |= {"name": name} if name else {}
    if "name" not in fields:
        raise BadParameter("required: the file contains no name", param_hint="--name")
    vector = client.register_vector(**fields)
    return vector, tables.card_lines(vector)


@command_of(vectors)
def similar(client: Client, name: VectorName) -> Output:
    """List the other vectors of the model by cosine."""
    found = client.similar_vectors(name)
    print_warnings(found.warnings)  # --json prints the vectors alone
    rows = [[one.id, f"{one.mean:+.3f}", f"{len(one.cosine)}"] for one in found.data]
    return found.data, [tables.text_table(("vector", "mean cosine", "layers"), rows, "no other vector")]


@command_of(vectors)
def combine(
    client: Client,
    name: NewName,
    terms: Annotated[list[str], Argument(metavar="NAME=WEIGHT...", help="Vectors and their weights.")],
    orthogonal_to: Annotated[list[str] | None, "Remove the component along this vector; repeatable."] = None,
    description: Description = "",
) -> None:
    """Store a weighted sum of vectors."""
    weighted = [{"vector": one["vector"], "weight": one["strength"]} for one in steering_of(terms, "all")]
    vector = client.combine_vectors(name, weighted, orthogonal_to=tuple(orthogonal_to or ()), description=description)
    for line in tables.card_lines(vector):
        console.print(line)


@command_of(vectors)
def delete(
    client: Client,
    name: Annotated[str, "The vector: name for all versions, or name@version for that one."],
    force: Annotated[bool, "Delete it even if a profile uses it."] = False,
) -> None:
    """Delete all versions of a vector, or one."""
    plain, at, version = name.partition("@")
    if at and not (version.isascii() and version.isdigit()):
        raise BadParameter(f"expected a number after @, as in {plain}@3, got {name!r}", param_hint="NAME")
    client.delete_vector(plain, version=int(version) if at else None, force=force)
    console.print(shown(f"deleted {name}"))


@command_of(dictionaries, "list")
def list_dictionaries(client: Client) -> Output:
    """List the dictionaries of the server."""
    found = client.list_dictionaries()
    rows = [
        [one.name, f"{one.layer}", f"{one.features}", one.architecture or "", one.problem or "usable"]
        for one in found.data
    ]
    return found, [tables.text_table(("name", "layer", "features", "architecture", ""), rows, "none")]


@command_of(dictionaries, "search")
def search_dictionary(
    client: Client,
    name: Dictionary,
    texts: Texts = None,
    file: TextFile = None,
    vector: Annotated[str | None, "Find features near this vector."] = None,
    against: Annotated[list[str] | None, "A text to compare with; repeatable. Default: neutral texts."] = None,
    top: Annotated[int, "How many features to list."] = 20,
    min_output_score: Annotated[float | None, "List only features that make the model say what they promote."] = None,
) -> Output:
    """Find features near a vector, or more active in texts than in others."""
    if vector is not None and (texts or file is not None):
        raise BadParameter("expected texts or --vector, got both")
    read = None if vector is not None else given_texts(texts, file)
    found = client.search_dictionary(
        name, vector=vector, texts=read, against=against, top=top, min_output_score=min_output_score
    )
    rows = []
    for one in found.features:
        promoted = " ".join(token.text.strip() for token in one.promoted)
        rows.append([f"{one.feature}", f"{one.score:+.3f}", tables.optional(one.output_score, ".3f"), promoted])
    return found, [tables.text_table(("feature", "score", "output score", "promotes"), rows, "none")]


@command_of(dictionaries, "vector")
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


MAX_JSON_BYTES = 256 << 20
Registration: TypeAlias = dict[str, Any]  # of `Client.register_vector`; without `scale` it is each direction's length


def decoder_row(weights: Path, feature: int) -> Registration:
    """Reads row `feature` of `W_dec` of a SAELens dictionary. Raises InvalidRequest where the folder of its weights is none."""
    prepare_for_torch()
    from steering.lab.dictionaries import open_dictionary  # noqa: PLC0415 - imports torch

    found = open_dictionary(weights.parent)
    source = ", ".join(filter(None, (found.hook, found.model)))
    description = f"SAE feature {feature} of {source}"
    return {
        "directions": {str(found.layer): found.rows((feature,))[0].tolist()},
        "description": description,
        "tags": ("saelens",),
    }


def json_directions(file: Path, layer: int | None) -> Registration:
    """Reads `[numbers]` with a given layer, `{"12": [numbers]}`, or an object with `directions` as the server exports it.

    Of an export directions, scales, maps and description are read; only a safetensors file carries a card and provenance.

    Raises InvalidRequest naming the invalid field.
    """
    if file.stat().st_size > MAX_JSON_BYTES:
        raise InvalidRequest(f"{file.name} is larger than {MAX_JSON_BYTES >> 20} MB", param="file")
    value = load_json(file.read_bytes(), file.name, param="file")
    if isinstance(value, list) and layer is None:
        raise InvalidRequest(f"{file.name} is one list of numbers; give its layer with --layer", param="layer")
    if not isinstance(value, list) and layer is not None:
        raise InvalidRequest(f"{file.name} names its layers; --layer is not allowed", param="layer")
    fields = {"directions": {str(layer): value} if isinstance(value, list) else value}
    if isinstance(value, dict) and "directions" in value:
        if unknown := set(value) - set(VectorExport.model_fields):
            raise InvalidRequest(f"unknown keys {sorted(unknown)[:5]} next to 'directions'", param="file")
        fields = {key: value[key] for key in RegisterRequest.model_fields if key in value and key != "maps"}
        fields |= {"maps": value["map_numbers"]} if value.get("map_numbers") else {}
    try:
        RegisterRequest.model_validate({"name": "unnamed", **fields})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidRequest(f"{file.name}: {place[:80]}: {first['msg']}", param="file") from None
    return fields
