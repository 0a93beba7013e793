"""`steer extract` and `steer vectors`: creates, lists, shows, exports, imports and deletes concept vectors."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.formats.gguf_import import read_control_vector
from app.cli.formats.vector_sources import GivenDirections, decoder_row, json_directions
from app.cli.output.job_progress import follow
from app.cli.output.tables import card_lines, card_table, vectors_table
from app.cli.output.terminal import LOCAL, AsJson, Key, Url, client_of, console, layers_of, print_json, shown, stderr
from steering.client import Client
from steering.concepts.loader import read_pairs
from steering.pairs import PairSet
from steering.pairs import Text as PairText
from steering.schemas.vectors import VectorAnswer

vectors = typer.Typer(no_args_is_help=True, help="Concept vectors of a server: list, show, export, import, delete.")

Name = Annotated[str, typer.Argument(help="The vector: name, or name@version.")]


class Format(StrEnum):
    """File formats of an export."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    JSON = "json"


def extract(  # noqa: PLR0913, PLR0917 - one option a field
    name: Annotated[str, typer.Argument(help="Name of the new vector.")],
    concept: Annotated[str | None, typer.Option(help="A starter concept, such as sentiment.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help='JSON lines: {"positive", "negative", "prompt"?, ...}'),
    ] = None,
    trait: Annotated[str | None, typer.Option(help="Description of a trait; the model writes the examples.")] = None,
    opposite: Annotated[str | None, typer.Option(help="The opposite of the trait.")] = None,
    method: Annotated[str, typer.Option(help="mean_difference, pca, probe, whitened, trained.")] = "mean_difference",
    position: Annotated[
        str | None,
        typer.Option(help="last, mean, response_mean, or an offset from the end; default: depends on the texts."),
    ] = None,
    layers: Annotated[str, typer.Option(help="all, or 12,13.")] = "all",
    holdout: Annotated[float, typer.Option(help="Share of the topics held out for evaluation.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Which topics are held out.")] = 0,
    description: Annotated[str, typer.Option(help="Description of the vector.")] = "",
    steps: Annotated[int | None, typer.Option(help="Method trained: number of optimization steps.")] = None,
    kl_coefficient: Annotated[
        float | None, typer.Option(help="Method trained: how much neutral answers are spared; 0 for not at all.")
    ] = None,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Extract a vector from contrasting texts and evaluate it on held-out texts."""
    options: dict[str, Any] = {
        **_source(concept, pairs, trait, opposite),
        "method": method,
        "position": int(position) if position and position.lstrip("-").isdigit() else position,
        "layers": layers_of(layers),
        "holdout": holdout,
        "seed": seed,
        "description": description,
        **_training(steps, kl_coefficient),
    }
    with client_of(url, key) as client:
        result = follow(client, client.start_extraction(name, **options))
    vector = VectorAnswer.model_validate(result["vector"])
    for line in card_lines(vector):
        console.print(line)


def _source(concept: str | None, pairs: Path | None, trait: str | None, opposite: str | None) -> dict[str, Any]:
    """Returns the given source. Raises BadParameter for none or several."""
    given = [source for source in (concept, pairs, trait) if source is not None]
    if len(given) != 1 or (trait is None) != (opposite is None):
        raise typer.BadParameter("expected one source: --concept, --pairs, or --trait with --opposite")
    if concept is not None:
        return {"concept": concept}
    if pairs is not None:
        with pairs.open(encoding="utf-8") as lines:
            return {"pairs": _pairs(read_pairs(lines, pairs.name))}
    return {"describe": {"trait": trait, "opposite": opposite}}


def _training(steps: int | None, kl_coefficient: float | None) -> dict[str, Any]:
    """Returns the field `training` if one of its options was given."""
    training = {
        name: value for name, value in (("steps", steps), ("kl_coefficient", kl_coefficient)) if value is not None
    }
    return {"training": training} if training else {}


def _pairs(found: PairSet) -> list[dict[str, Any]]:
    return [
        {"positive": _text(positive), "negative": _text(negative), "topic": topic}
        for (positive, negative), topic in zip(found, found.topics, strict=True)
    ]


def _text(text: PairText) -> Any:
    return text if isinstance(text, str) else [{"role": one.role, "content": one.content} for one in text]


@vectors.command("list")
def find(
    search: Annotated[str | None, typer.Option(help="Part of a name or description.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only those with this tag.")] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """List the newest version of each name."""
    filters: dict[str, Any] = {name: value for name, value in (("search", search), ("tag", tag)) if value is not None}
    found: list[VectorAnswer] = []
    with client_of(url, key) as client:
        page = client.list_vectors(limit=100, **filters)
        found += page.data
        while page.next_cursor is not None:
            page = client.list_vectors(limit=100, cursor=page.next_cursor, **filters)
            found += page.data
    if as_json:
        print_json([vector.model_dump(mode="json") for vector in found])
    else:
        console.print(vectors_table(found) if found else "no vectors yet: steer extract sentiment --concept sentiment")


@vectors.command()
def show(name: Name, as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """Show the quality card of a vector by layer."""
    with client_of(url, key) as client:
        vector = client.get_vector(name)
    if as_json:
        print_json(vector.model_dump(mode="json"))
        return
    for line in card_lines(vector):
        console.print(line)
    console.print(card_table(vector))


@vectors.command()
def export(
    name: Name,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default: name and format.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="gguf is a llama.cpp control vector.")] = Format.SAFETENSORS,
    layers: Annotated[str, typer.Option(help="gguf only: recommended, all or 12,13.")] = "recommended",
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Write a vector to a file. A control vector omits layer 0, which llama.cpp cannot steer."""
    path = output or Path(f"{name.replace('@', '-')}.{form.value}")
    if form is not Format.GGUF and layers != "recommended":
        raise typer.BadParameter("only allowed with --format gguf", param_hint="--layers")
    with client_of(url, key) as client:
        if form is Format.SAFETENSORS:
            path.write_bytes(client.export_vector(name))
        elif form is Format.JSON:
            path.write_text(client.export_vector_json(name).model_dump_json(indent=2), encoding="utf-8")
        else:
            path.write_bytes(_control_vector(client, name, layers))
    console.print(shown(f"wrote {path}"))


def _control_vector(client: Client, name: str, layers: str) -> bytes:
    wanted = layers_of(layers)
    if isinstance(wanted, dict):
        raise typer.BadParameter("expected recommended, all or 12,13", param_hint="--layers")
    content = client.export_control_vector(name, wanted)
    vector = client.get_vector(name)
    if 0 in (vector.recommended.layers if wanted == "recommended" else vector.layers):
        stderr.print("layer 0 was omitted: llama.cpp cannot steer it", style="yellow")
    console.print("scale 1 of llama.cpp is strength 1 of this server")
    return content


@vectors.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .safetensors, .gguf or .json file.")],
    name: Annotated[str | None, typer.Option(help="Name of the vector; default: the name in the file.")] = None,
    feature: Annotated[int | None, typer.Option(help="Row of W_dec of a SAELens dictionary.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="SAELens configuration; default: cfg.json in the folder of the file.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Zero-based block, if the file does not name it.")] = None,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Import a vector. The server reads only its own safetensors files; other formats are read by this command."""
    with client_of(url, key) as client:
        given = _given(file, feature, config, layer)
        if given is None:
            vector = client.import_vector(file.read_bytes(), name=name)
        else:
            target = name or given.name
            if target is None:
                raise typer.BadParameter("required: the file contains no name", param_hint="--name")
            vector = client.register_vector(
                target, given.directions, scale=given.scale, description=given.description, tags=given.tags
            )
    for line in card_lines(vector):
        console.print(line)


def _given(file: Path, feature: int | None, config: Path | None, layer: int | None) -> GivenDirections | None:
    """Reads a file of another tool; None for a file that the server reads."""
    if feature is not None:
        return decoder_row(file, config or file.with_name("cfg.json"), feature, layer)
    if config is not None:
        raise typer.BadParameter("needs --feature", param_hint="--config")
    if file.suffix == ".json":
        return json_directions(file, layer)
    if layer is not None:
        raise typer.BadParameter("not allowed: the file names its layers", param_hint="--layer")
    return GivenDirections(read_control_vector(file), tags=("gguf",)) if file.suffix == ".gguf" else None


@vectors.command()
def delete(
    name: Annotated[str, typer.Argument(help="Name of the vector; all versions are deleted.")],
    force: Annotated[bool, typer.Option(help="Delete it even if a profile uses it.")] = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Delete all versions of a vector."""
    with client_of(url, key) as client:
        client.delete_vector(name, force=force)
    console.print(shown(f"deleted {name}"))
