"""`steer extract`: extracts a concept vector from contrasting texts."""

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.output.job_progress import follow
from app.cli.output.tables import card_lines
from app.cli.output.terminal import LOCAL, AsJson, Key, Url, client_of, console, layers_of, print_json
from app.cli.texts.sources import read_texts
from steering.concepts.loader import read_pairs
from steering.pairs import PairSet
from steering.pairs import Text as PairText
from steering.schemas.vectors import VectorAnswer

PairFile = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="JSON lines or CSV with positive and negative, and prompt or topic if wanted."
    ),
]
PositiveFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="Positive texts, one a line or .jsonl; unpaired.")
]
NegativeFile = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="Negative texts, with --positive.")
]
Steps = Annotated[int | None, typer.Option(help="Method trained: number of optimization steps.")]
Spared = Annotated[
    float | None, typer.Option(help="Method trained: how much neutral answers are spared; 0 for not at all.")
]


def extract(  # noqa: PLR0913, PLR0917 - one option a field
    name: Annotated[str, typer.Argument(help="Name of the new vector.")],
    concept: Annotated[str | None, typer.Option(help="A starter concept, such as sentiment.")] = None,
    pairs: PairFile = None,
    positive: PositiveFile = None,
    negative: NegativeFile = None,
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
    steps: Steps = None,
    kl_coefficient: Spared = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Extract a vector from contrasting texts and evaluate it on held-out texts."""
    options: dict[str, Any] = {
        **_source(concept, pairs, (positive, negative), (trait, opposite)),
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
    if as_json:
        print_json(vector.model_dump(mode="json"))
        return
    for line in card_lines(vector):
        console.print(line)


def _source(
    concept: str | None,
    pairs: Path | None,
    lists: tuple[Path | None, Path | None],
    described: tuple[str | None, str | None],
) -> dict[str, Any]:
    """Returns the given source. Raises BadParameter for none, several or half of one."""
    (positive, negative), (trait, opposite) = lists, described
    given = [source for source in (concept, pairs, positive, trait) if source is not None]
    incomplete = (trait is None) != (opposite is None) or (positive is None) != (negative is None)
    if len(given) != 1 or incomplete:
        raise typer.BadParameter(
            "expected one source: --concept, --pairs, --positive with --negative, or --trait with --opposite"
        )
    if concept is not None:
        return {"concept": concept}
    if pairs is not None:
        return {"pairs": pairs_of(pairs)}
    if positive is not None and negative is not None:
        return {"positive": read_texts(positive), "negative": read_texts(negative)}
    return {"describe": {"trait": trait, "opposite": opposite}}


def pairs_of(file: Path) -> list[dict[str, Any]]:
    """Returns the pairs of a file as a request has them. Raises InvalidRequest with the number of a line."""
    found = _read_pairs(file)
    return [
        {"positive": _text(positive), "negative": _text(negative), "topic": topic}
        for (positive, negative), topic in zip(found, found.topics, strict=True)
    ]


def _read_pairs(file: Path) -> PairSet:
    """Reads JSON lines, or a CSV file whose rows have the same rules; empty cells are absent."""
    with file.open(encoding="utf-8-sig", newline="" if file.suffix == ".csv" else None) as lines:
        if file.suffix != ".csv":
            return read_pairs(lines, file.name)
        rows = [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(lines)]
    return read_pairs([json.dumps(row) for row in rows], file.name)


def _training(steps: int | None, kl_coefficient: float | None) -> dict[str, Any]:
    """Returns the field `training` if one of its options was given."""
    training = {
        name: value for name, value in (("steps", steps), ("kl_coefficient", kl_coefficient)) if value is not None
    }
    return {"training": training} if training else {}


def _text(text: PairText) -> Any:
    return text if isinstance(text, str) else [{"role": one.role, "content": one.content} for one in text]
