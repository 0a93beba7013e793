"""`steer extract` and `transfer`: a vector from contrasting texts, or from a direction of the server's second model."""

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Argument, BadParameter, Option

from app.cli.input.conversion import given, layers_of, position_of, read_texts, text_of
from app.cli.options import Description, ListedLayers, NewName, file_option
from app.cli.output.live import follow
from app.cli.output.tables import card_lines, estimate_text
from app.cli.output.terminal import Output, shown, with_client
from steering.client import Client
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
    yield vector
    yield from card_lines(vector)


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
    yield found
    yield _transfer_table(found)
    for warning in found.warnings:
        yield shown(f"warning: {warning}", "yellow")
    if found.effect is not None:
        yield shown(
            f"shift: {found.effect.prompts} neutral prompts, {found.effect.max_tokens} tokens, relative dose "
            f"{found.effect.relative_dose:g}; native: {found.effect.native or 'fitted to the pairs'}"
        )
    yield shown(
        f"{found.vector.id}: layer {found.from_layer} to layer {found.to_layer}; {found.anchors} anchors, "
        f"{found.explained:.0%} of their variance explained; cosine with the native direction {found.cosine:.2f}"
    )


def _transfer_table(found: TransferAnswer) -> Table:
    columns = ["AUROC on held-out pairs", *([] if found.effect is None else ["shift of the answers"])]
    table = Table("direction", *columns, title=f"{found.from_model} to {found.vector.model}")
    for name, one in found.auroc.items():
        cells = ["not measured" if one is None else estimate_text(one, ".2f")]
        if found.effect is not None:
            cells.append(_shift(found.effect, name))
        table.add_row(name, *cells)
    return table


def _shift(effect: EffectAnswer, name: str) -> str:
    """Describes the shift of one kind of direction; empty for the one of the second model, which steers no answer."""
    if name not in effect.shift:
        return ""
    one = effect.shift[name]
    return "numbers out of range" if one is None else estimate_text(one)
