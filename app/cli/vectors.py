"""`steer extract` and `steer vectors`: concept vectors made, listed, shown, carried in and out as files, deleted."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli import gguf_import as control_vector
from app.cli.job_progress import followed
from app.cli.tables import card_lines, card_table, vectors_table
from app.cli.terminal import LOCAL, AsJson, Key, Url, client_of, console, layers_of, print_json, shown, stderr
from app.cli.vector_sources import GivenDirections, decoder_row, plain
from steering.client.client import Client
from steering.concepts.loader import read_pairs
from steering.pairs import PairSet
from steering.pairs import Text as PairText
from steering.schemas.vectors import VectorAnswer

vectors = typer.Typer(no_args_is_help=True, help="Concept vectors of a server: list, show, export, import, delete.")

Name = Annotated[str, typer.Argument(help="The vector: name, or name@version.")]


class Format(StrEnum):
    """What a vector is written as."""

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
    trait: Annotated[str | None, typer.Option(help="A trait in words; the model writes the examples itself.")] = None,
    opposite: Annotated[str | None, typer.Option(help="The opposite of the trait.")] = None,
    method: Annotated[str, typer.Option(help="mean_difference, pca, probe, whitened, trained.")] = "mean_difference",
    position: Annotated[
        str | None,
        typer.Option(help="last, mean, response_mean, or an offset from the end; by default as the texts are."),
    ] = None,
    layers: Annotated[str, typer.Option(help="all, or 12,13.")] = "all",
    holdout: Annotated[float, typer.Option(help="Share of the topics kept from the fit, to prove it on.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Which topics are held out.")] = 0,
    description: Annotated[str, typer.Option(help="What the vector is about.")] = "",
    steps: Annotated[int | None, typer.Option(help="Method trained: how often the direction is changed.")] = None,
    caution: Annotated[
        float | None, typer.Option(help="Method trained: how much neutral answers are spared; 0 for not at all.")
    ] = None,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Make a vector from contrasting texts and prove it on texts held out."""
    options: dict[str, Any] = {
        **_source(concept, pairs, trait, opposite),
        "method": method,
        "position": int(position) if position and position.lstrip("-").isdigit() else position,
        "layers": layers_of(layers),
        "holdout": holdout,
        "seed": seed,
        "description": description,
        **_training(steps, caution),
    }
    with client_of(url, key) as client:
        made = followed(client, client.start_extraction(name, **options))
    vector = VectorAnswer.model_validate(made["vector"])
    for line in card_lines(vector):
        console.print(line)


def _source(concept: str | None, pairs: Path | None, trait: str | None, opposite: str | None) -> dict[str, Any]:
    """The one source that was named. Raises BadParameter for none or several."""
    given = [source for source in (concept, pairs, trait) if source is not None]
    if len(given) != 1 or (trait is None) != (opposite is None):
        raise typer.BadParameter("name one source: --concept, --pairs, or --trait with --opposite")
    if concept is not None:
        return {"concept": concept}
    if pairs is not None:
        with pairs.open(encoding="utf-8") as lines:
            return {"pairs": _pairs(read_pairs(lines, pairs.name))}
    return {"describe": {"trait": trait, "opposite": opposite}}


def _training(steps: int | None, caution: float | None) -> dict[str, Any]:
    """`training` with what was said of it; nothing where nothing was."""
    said = {name: value for name, value in (("steps", steps), ("caution", caution)) if value is not None}
    return {"training": said} if said else {}


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
    """The newest version of each name."""
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
    """A vector's quality card, layer by layer."""
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
    """Write a vector to a file. A control vector leaves out layer 0, for which llama.cpp has no place."""
    path = output or Path(f"{name.replace('@', '-')}.{form.value}")
    if form is not Format.GGUF and layers != "recommended":
        raise typer.BadParameter("a choice for --format gguf only", param_hint="--layers")
    with client_of(url, key) as client:
        if form is Format.SAFETENSORS:
            path.write_bytes(client.export_vector(name))
        elif form is Format.JSON:
            path.write_text(client.export_vector_words(name).model_dump_json(indent=2), encoding="utf-8")
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
        stderr.print("layer 0 was left out: llama.cpp has no place for it", style="yellow")
    console.print("llama.cpp's scale 1 is strength 1 here")
    return content


@vectors.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A .safetensors, .gguf or .json file.")],
    name: Annotated[str | None, typer.Option(help="Name to keep it under, where the file has none of its own.")] = None,
    feature: Annotated[int | None, typer.Option(help="Of a SAELens dictionary: which row of W_dec.")] = None,
    config: Annotated[Path | None, typer.Option(help="Its configuration; default: cfg.json beside the file.")] = None,
    layer: Annotated[int | None, typer.Option(help="Where the file does not say it: the zero-based block.")] = None,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Bring a vector to the server. Only this server's own safetensors files are read by it; the others are read here,
    GGUF in a process with limits."""
    with client_of(url, key) as client:
        given = _given(file, feature, config, layer)
        if given is None:
            vector = client.import_vector(file.read_bytes(), name=name)
        else:
            kept = name or given.name
            if kept is None:
                raise typer.BadParameter("the file has no name of its own", param_hint="--name")
            vector = client.register_vector(
                kept, given.directions, scale=given.scale, description=given.description, tags=given.tags
            )
    for line in card_lines(vector):
        console.print(line)


def _given(file: Path, feature: int | None, config: Path | None, layer: int | None) -> GivenDirections | None:
    """What a file of another tool holds; None for one that the server reads itself."""
    if feature is not None:
        return decoder_row(file, config or file.with_name("cfg.json"), feature, layer)
    if config is not None:
        raise typer.BadParameter("says where a feature lies: give --feature too", param_hint="--config")
    if file.suffix == ".json":
        return plain(file, layer)
    if layer is not None:
        raise typer.BadParameter("the file names its layers itself", param_hint="--layer")
    return GivenDirections(control_vector.read(file), tags=("gguf",)) if file.suffix == ".gguf" else None


@vectors.command()
def delete(
    name: Annotated[str, typer.Argument(help="The vector's name; all of its versions go.")],
    force: Annotated[bool, typer.Option(help="Although a profile names it.")] = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Delete all versions of a vector."""
    with client_of(url, key) as client:
        client.delete_vector(name, force=force)
    console.print(shown(f"deleted {name}"))
