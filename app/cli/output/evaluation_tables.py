"""Formats evaluations of a vector as tables and lines for a terminal."""

from rich.table import Table
from rich.text import Text

from app.cli.output.tables import estimate_text, numeric_table, optional, recommendation
from app.cli.output.terminal import shown
from steering.schemas.evaluation import DoseResponseAnswer, JudgementAnswer, LayerSweepAnswer


def dose_table(result: DoseResponseAnswer) -> Table:
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


def judge_table(found: JudgementAnswer) -> Table:
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


def sweep_table(result: LayerSweepAnswer) -> Table:
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


def result_lines(result: DoseResponseAnswer | LayerSweepAnswer) -> list[Text]:
    """Returns the recommendation, then the warnings."""
    lines = [Text("recommended: none" if result.recommended is None else recommendation(result.recommended))]
    if isinstance(result, DoseResponseAnswer):
        if result.anti_steered is not None:
            lines.append(Text(f"{result.anti_steered:.0%} of the prompts move against the sign of the strength"))
        if result.saved is not None:
            lines.append(shown(f"saved as {result.saved.id}"))
    return lines + [shown(f"warning: {warning}", "yellow") for warning in result.warnings]
