"""Readings and evaluations as tables for a terminal. Every text of a model is made safe first."""

from collections.abc import Sequence
from math import exp

from rich.table import Table
from rich.text import Text

from app.cli.terminal import shown
from steering.schemas.analysis import LogitLensAnswer, PredictionAnswer, ReadoutAnswer
from steering.schemas.comparison import EstimateAnswer
from steering.schemas.evaluation import DoseResponseAnswer, JudgementAnswer, LayerSweepAnswer


def readout_table(answer: ReadoutAnswer, vector: str) -> Table:
    """One row a token, one column a layer; below it the means."""
    text = answer.texts[0]
    layers = text.readout[vector]
    table = Table(title=shown(answer.vectors[vector].id, "bold"), title_justify="left", show_footer=True)
    table.add_column("token", footer="mean")
    for layer, scores in layers.items():
        table.add_column(f"layer {layer}", justify="right", footer=f"{scores.mean:+.2f}")
    for index, token in enumerate(text.tokens):
        row = [_coloured(scores.scores[index]) for scores in layers.values()]
        table.add_row(_token(token.text), *row)
    return table


def _coloured(score: float) -> Text:
    """Green toward the positive pole, red toward the negative one."""
    return Text(f"{score:+.2f}", style="green" if score > 0.25 else "red" if score < -0.25 else "")


def _token(text: str) -> Text:
    """A token as it can be told apart: its spaces and line ends are seen."""
    return shown(repr(text)[1:-1] if text.strip() != text else text)


def lens_table(answer: LogitLensAnswer, token: int) -> Table:
    """One row a layer: what would be said after one token of the prompt."""
    table = Table(title=Text.assemble("after ", _token(answer.tokens[token].text)), title_justify="left")
    table.add_column("layer", justify="right")
    table.add_column("plain")
    steered = any(layer.steered is not None for layer in answer.layers)
    if steered:
        table.add_column("steered")
    for layer in answer.layers:
        row: list[str | Text] = [str(layer.layer), _predictions(layer.plain[token])]
        if layer.steered is not None:
            row.append(_predictions(layer.steered[token]))
        table.add_row(*row)
    return table


def _predictions(row: Sequence[PredictionAnswer]) -> Text:
    parts: list[Text | str] = []
    for one in row:
        parts += ["  " if parts else "", _token(one.text), f" {_percent(one.logprob)}"]
    return Text.assemble(*parts)


def _percent(logprob: float) -> str:
    return f"{100 * exp(logprob):.0f} %"


def dose_table(result: DoseResponseAnswer) -> Table:
    """One row a strength."""
    layers = ", ".join(map(str, result.layers))
    table = Table(
        title=shown(f"{result.vector} at layer {layers}, read at {result.reading_layer}"), title_justify="left"
    )
    for heading in (
        "strength",
        "concept",
        "random",
        "beyond chance",
        "perplexity",
        "repetition",
        "KL",
        "dose",
    ):
        table.add_column(heading, justify="right")
    for point in result.points:
        table.add_row(
            f"{point.strength:+g}",
            f"{point.concept_score:+.2f}",
            "" if point.random_score is None else f"{point.random_score:+.2f}",
            "" if point.advantage is None else _estimate(point.advantage),
            f"x {point.perplexity_ratio:.2f}",
            f"{point.repetition:.2f}",
            f"{point.kl_neutral:.2f}",
            f"{point.relative_dose:.2f}",
        )
    return table


def judge_table(found: JudgementAnswer) -> Table:
    """One row a strength, from 0 to 2."""
    who = "the loaded model" if found.by == "self" else "the operator's endpoint"
    table = Table(title=shown(f"judged by {who}: {found.concept}"), title_justify="left")
    for heading in ("strength", "concept", "instruction", "fluency", "overall", "answers", "failed"):
        table.add_column(heading, justify="right")
    for point in found.points:
        means = (point.concept, point.instruction, point.fluency)
        table.add_row(
            f"{point.strength:+g}",
            *("-" if one is None else f"{one.mean:.2f}" for one in means),
            "-" if point.overall is None else _estimate(point.overall),
            str(point.judged),
            str(point.failed),
        )
    return table


def sweep_table(result: LayerSweepAnswer) -> Table:
    """One row a layer and strength; the best in bold."""
    table = Table(title=shown(f"{result.vector}, read at layer {result.reading_layer}"), title_justify="left")
    for heading in ("layer", "strength", "moved", "beyond chance", "perplexity", "dose", "AUROC"):
        table.add_column(heading, justify="right")
    for point in result.points:
        table.add_row(
            str(point.layer),
            f"{point.strength:+g}",
            _estimate(point.moved),
            _estimate(point.advantage),
            f"x {point.perplexity_ratio:.2f}",
            f"{point.relative_dose:.2f}",
            "" if point.auroc is None else f"{point.auroc:.2f}",
            style="bold" if point == result.best else "",
        )
    return table


def _estimate(found: EstimateAnswer) -> str:
    if found.interval is None:
        return f"{found.mean:+.2f}"
    return f"{found.mean:+.2f} ({found.interval[0]:+.2f} to {found.interval[1]:+.2f})"


def result_lines(result: DoseResponseAnswer | LayerSweepAnswer) -> list[Text]:
    """What to do with it, then the warnings."""
    lines = []
    advised = result.recommended
    if advised is None:
        lines.append(Text("recommended: none"))
    else:
        layers, (low, high) = ", ".join(map(str, advised.layers)), advised.strength
        lines.append(Text(f"recommended: layer {layers}, strength {low:g} to {high:g}"))
    if isinstance(result, DoseResponseAnswer):
        if result.anti_steered is not None:
            lines.append(Text(f"{result.anti_steered:.0%} of the prompts move against the sign of the strength"))
        if result.saved is not None:
            lines.append(shown(f"saved as {result.saved.id}"))
    return lines + [shown(f"warning: {warning}", "yellow") for warning in result.warnings]
