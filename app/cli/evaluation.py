"""`steer evaluate` and `report`: the effect of a vector by strength or layer, and a judgement of steering before it is deployed."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text
from typer import Argument, BadParameter, Option

from app.cli.input.conversion import given, layers_of, numbers, prompts_of, steering_of
from app.cli.options import file_option
from app.cli.output.live import follow
from app.cli.output.tables import estimate_text, numeric_table, optional, recommendation
from app.cli.output.terminal import Output, shown, with_client
from steering.client import Client
from steering.client.reports import CHECKS, agreement, check_row, verdict
from steering.client.results import Report
from steering.schemas.evaluation import DoseResponseAnswer, JudgementAnswer, LayerSweepAnswer, StrengthsAnswer

EVALUATION: TypeAdapter[LayerSweepAnswer | DoseResponseAnswer] = TypeAdapter(StrengthsAnswer)
SUFFIXES = (".html", ".md", ".json")

Kind: TypeAlias = Literal["dose_response", "layer_sweep"]
Judge: TypeAlias = Literal["self", "endpoint"]
Concept = Annotated[str | None, Option(help="Use the evaluation prompts of this starter concept.")]
Prompts = Annotated[Path | None, file_option('Use these prompts, JSON lines: {"prompt": "..."}')]


@with_client
def evaluate(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    vector: Annotated[str, Argument(help="The vector to evaluate: name, or name@version.")],
    kind: Annotated[Kind, Option(help="dose_response: how strongly; layer_sweep: at which layer.")] = "dose_response",
    concept: Concept = None,
    prompts: Prompts = None,
    strengths: Annotated[str | None, Option(help="Strengths, separated by commas.")] = None,
    layers: Annotated[str | None, Option(help="recommended, all, 12,13 or 10:16 (half-open).")] = None,
    random_directions: Annotated[int | None, Option(help="Random directions at the same dose (dose_response).")] = None,
    judge: Annotated[
        Judge | None, Option(help="Also rates the answers: the loaded model, or the operator's endpoint.")
    ] = None,
    judge_concept: Annotated[str | None, Option(help="What the judge looks for; default: the description.")] = None,
    save: Annotated[bool, Option(help="Store it on the card, as the next version (dose_response).")] = False,
) -> Output:
    """Evaluate a vector: how text changes, what breaks, and what random directions do."""
    if judge is None and judge_concept is not None:
        raise BadParameter("needs --judge", param_hint="--judge-concept")
    options: dict[str, Any] = {
        "concept": concept,
        "random_directions": random_directions,
        "prompts": prompts_of(prompts),
        "strengths": None if strengths is None else numbers(strengths, "--strengths", float),
        "layers": None if layers is None else layers_of(layers),
        "judge": None if judge is None else given(by=judge, concept=judge_concept or None),
        "save": save or None,
    }
    result = EVALUATION.validate_python(follow(client, client.start_evaluation(kind, vector, **options)))
    yield result
    yield _dose_table(result) if isinstance(result, DoseResponseAnswer) else _sweep_table(result)
    if isinstance(result, DoseResponseAnswer) and result.judgement is not None:
        yield _judge_table(result.judgement)
    yield from _result_lines(result)


def _dose_table(result: DoseResponseAnswer) -> Table:
    """Returns one row per strength."""
    layers = ", ".join(map(str, result.layers))
    headings = ("strength", "concept", "random", "beyond chance", "perplexity", "repetition", "KL", "dose")
    table = numeric_table(f"{result.vector} at layer {layers}, read at {result.reading_layer}", *headings)
    for point in result.points:
        table.add_row(
            f"{point.strength:+g}",
            f"{point.concept_score:+.2f}",
            optional(point.random_score, "+.2f"),
            "" if point.advantage is None else estimate_text(point.advantage),
            f"x {point.perplexity_ratio:.2f}",
            f"{point.repetition:.2f}",
            f"{point.kl_neutral:.2f}",
            f"{point.relative_dose:.2f}",
        )
    return table


def _judge_table(found: JudgementAnswer) -> Table:
    """Returns one row per strength; ratings go from 0 to 2."""
    judge = "the loaded model" if found.by == "self" else "the operator's endpoint"
    headings = ("strength", "concept", "instruction", "fluency", "overall", "answers", "failed")
    table = numeric_table(f"judged by {judge}: {found.concept}", *headings)
    for point in found.points:
        means = (point.concept, point.instruction, point.fluency)
        table.add_row(
            f"{point.strength:+g}",
            *("-" if one is None else f"{one.mean:.2f}" for one in means),
            "-" if point.overall is None else estimate_text(point.overall),
            str(point.judged),
            str(point.failed),
        )
    return table


def _sweep_table(result: LayerSweepAnswer) -> Table:
    """Returns one row per layer and strength; the best is bold."""
    headings = ("layer", "strength", "moved", "beyond chance", "perplexity", "dose", "AUROC")
    table = numeric_table(f"{result.vector}, read at layer {result.reading_layer}", *headings)
    for point in result.points:
        table.add_row(
            str(point.layer),
            f"{point.strength:+g}",
            estimate_text(point.moved),
            estimate_text(point.advantage),
            f"x {point.perplexity_ratio:.2f}",
            f"{point.relative_dose:.2f}",
            optional(point.auroc),
            style="bold" if point == result.best else "",
        )
    return table


def _result_lines(result: DoseResponseAnswer | LayerSweepAnswer) -> list[Text]:
    """Returns the recommendation, then the warnings."""
    lines = [Text("recommended: none" if result.recommended is None else recommendation(result.recommended))]
    if isinstance(result, DoseResponseAnswer):
        if result.anti_steered is not None:
            lines.append(Text(f"{result.anti_steered:.0%} of the prompts move against the sign of the strength"))
        if result.saved is not None:
            lines.append(shown(f"saved as {result.saved.id}"))
    return lines + [shown(f"warning: {warning}", "yellow") for warning in result.warnings]


@with_client
def report(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    vector: Annotated[str, Argument(help="The vector whose concept is to move: name, or name@version.")],
    strength: Annotated[float | None, Option(help="Strength of an add; default: the largest recommended one.")] = None,
    profile: Annotated[str | None, Option(help="Judge this profile of the server.")] = None,
    steering: Annotated[
        str | None, Option(metavar="JSON", help="Judge these interventions, as the API takes them.")
    ] = None,
    direction: Annotated[str | None, Option(help="up or down: how the concept is meant to move.")] = None,
    concept: Concept = None,
    prompts: Prompts = None,
    seeds: Annotated[str, Option(help="Seeds of the answers, separated by commas; each is judged.")] = "0,1",
    samples: Annotated[int, Option(help="Answers to each prompt under each steering.")] = 1,
    varied: Annotated[int, Option(help="How many prompts are varied for robustness.")] = 12,
    side_effects: Annotated[
        list[str] | None, Option(help="A starter concept or vector to read the texts along; repeatable.")
    ] = None,
    out: Annotated[Path | None, Option(help="File to write: .html, .md or .json.")] = None,
) -> Output:
    """Judge a vector or profile before it is deployed: control, utility, robustness and side effects."""
    if out is not None and out.suffix not in SUFFIXES:
        raise BadParameter(f"expected a file ending in {', '.join(SUFFIXES)}, got {out.name}", param_hint="--out")
    options: dict[str, Any] = {
        "strength": strength,
        "direction": direction,
        "concept": concept,
        "steering": steering_of(profile=profile, steering=steering),
        "seeds": numbers(seeds, "--seeds", int),
        "samples": samples,
        "varied": varied,
        "prompts": prompts_of(prompts),
        "side_effects": side_effects,
    }
    found = Report.model_validate(follow(client, client.start_report(vector, **options)))
    if out is not None:
        out.write_text(_document(found, out.suffix), encoding="utf-8")
    yield found
    for seed in found.seeds:
        table = Table(*CHECKS, title=f"seed {seed.seed}: {verdict(seed.passed)}")
        for gate in seed.gates:
            for check in gate.checks:
                table.add_row(gate.name, *check_row(check))
        yield table
    for warning in found.warnings:
        yield shown(f"warning: {warning}", "yellow")
    yield shown(f"{found.vector}: {verdict(found.passed)}{agreement(found)}")
    if out is not None:
        yield shown(f"wrote {out}")


def _document(found: Report, suffix: str) -> str:
    if suffix == ".html":
        return found.page()
    return found.markdown() if suffix == ".md" else found.model_dump_json(indent=1) + "\n"
