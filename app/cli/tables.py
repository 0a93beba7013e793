"""Formats responses of the server for a terminal: tables, lines, charts and live progress. Model text is sanitized."""

from collections.abc import Iterable, Mapping, Sequence
from math import exp
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.bar import Bar
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from app.cli.terminal import print_json, safe, shown, stderr
from steering.cards import Estimate
from steering.client import ApiError, Client
from steering.client.display import figures, readouts_of, recommendation, words
from steering.client.results import Comparison
from steering.schemas.comparison import ArmErrorAnswer, CompareAnswer
from steering.schemas.generation import RaisedFlag, TokenPiece, TopLogprob
from steering.schemas.reading import LogitLensAnswer, ReadoutAnswer
from steering.schemas.resources import JobAnswer
from steering.schemas.steering import AppliedIntervention, AppliedSteering
from steering.schemas.vectors import VectorAnswer
from steering.spec import InterventionSpec, LayerRange

T = TypeVar("T")

IDS = ("id", "job", "link")  # headings of what is copied into another command: never broken over two lines
BAR_WIDTH = 48


def dumped(value: BaseModel | Sequence[BaseModel]) -> Any:
    """Returns a response, or several, as JSON types without absent fields."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_none=True)
    return [item.model_dump(mode="json", exclude_none=True) for item in value]


def listing(
    values: Sequence[BaseModel], headings: Iterable[str], rows: Sequence[Sequence[str]]
) -> tuple[Any, list[Any]]:
    """Returns a list of the server as a command does: the values without absent fields, and a table."""
    return dumped(values), [text_table(headings, rows, "none")]


def warning_lines(warnings: Iterable[str]) -> list[Text]:
    """Returns a line per warning."""
    return [shown(f"warning: {warning}", "yellow") for warning in warnings]


def text_table(headings: Iterable[str], rows: Sequence[Sequence[str]], empty: str | None = None) -> Table | str:
    """Returns a table of texts, sanitized. empty: what is returned without rows, if not a table."""
    if not rows and empty is not None:
        return empty
    table = Table(*(Column(heading, overflow="fold", no_wrap=heading in IDS) for heading in headings))
    for row in rows:
        table.add_row(*map(shown, row))
    return table


def numeric_table(title: str, *headings: str) -> Table:
    """Returns a table of right-aligned columns."""
    columns = (Column(heading, justify="right") for heading in headings)
    return Table(*columns, title=shown(title), title_justify="left")


def optional(value: float | None, form: str = ".2f") -> str:
    """Formats a number, empty where nothing was measured."""
    return "" if value is None else f"{value:{form}}"


def estimate_text(found: Estimate, form: str = "+.2f") -> str:
    """Returns the mean and, where it is known, its interval. form: of each number."""
    between = "" if found.interval is None else " ({:{f}} to {:{f}})".format(*found.interval, f=form)
    return f"{found.mean:{form}}{between}"


def _by_layer(values: Mapping[Any, float], form: str) -> str:
    return ", ".join(f"{value:{form}} at layer {layer}" for layer, value in values.items())


def comparison_table(answer: CompareAnswer, title: str) -> Table:
    """Returns one row per arm and sample: text, readouts, and distance from the unsteered model.

    Words that the baseline does not have are coloured. Figures over all samples are in the row of the first.
    """
    names = readouts_of(answer)
    about = (
        f"{', '.join(names)}: readout of the text, read again without steering, in natural scales "
        "(the response also has steered_readout, which contains what was added). "
    )
    table = Table(
        Column("arm", no_wrap=True),
        Column("answer", ratio=1, overflow="fold"),
        *(Column(heading, justify="right") for heading in [*names, "KL", "differs at", "perplexity"]),
        title=shown(title, "bold"),
        title_justify="left",
        show_lines=True,
        caption=shown(f"{about if names else ''}KL from the unsteered model, in nats."),
        caption_justify="left",
    )
    for arm in answer.arms:
        if arm.error is not None:
            table.add_row(shown(arm.name), shown(arm.error.message, "red"))
            continue
        *readouts, kl, perplexity = figures(arm, names)
        measured = [*(optional(mean, "+.2f") for mean in readouts), optional(kl)]
        differs = arm.against_baseline.first_divergence if arm.against_baseline else ()
        for index, choice in enumerate(arm.choices):
            spans = [shown(text, "" if equal else "bold cyan") for text, equal in words(arm, index)]
            text = Text.assemble(*spans) if spans else shown(choice.text.strip())
            first = "" if index >= len(differs) else "never" if differs[index] is None else f"token {differs[index]}"
            if index == 0:
                table.add_row(shown(arm.name), text, *measured, first, optional(perplexity, ".1f"))
            else:
                table.add_row("", text, *("" for _ in measured), first, "")
    return table


def interventions_text(interventions: Sequence[InterventionSpec] | None) -> str:
    """Describes stored steering in one line."""
    return ", ".join(map(_intervention_text, interventions or ())) or "no steering"


def _intervention_text(one: InterventionSpec) -> str:
    if one.head is not None:
        at = one.layers
        layers = f"{at.from_}:{at.to}" if isinstance(at, LayerRange) else at if at == "all" else ",".join(map(str, at))
        return f"ablate head {one.head} at layers {layers}"
    by = f"{one.strength:+g}" if one.degrees is None else f"by {one.strength * one.degrees:g} degrees"
    return f"{one.operation} {one.vector} {by}"


def applied_lines(steering: AppliedSteering) -> list[Text]:
    """Returns one line per applied intervention, then the warnings."""
    lines = []
    for one in steering.applied:
        what = one.vector if one.head is None else f"head {one.head}"
        action = f"{one.operation} {what} {_amount(one)}".rstrip()
        if one.hook is not None:
            action += f" in {one.hook}"
        if one.strengths:
            action += f", shared out as {_by_layer(one.strengths, '+.2f')}"
        if (source := one.strength_from) is not None:
            least = ", at least 0" if source.activation == "relu" else ""
            action += f" times (score of {source.vector} {source.bias:+g}{least})"
        if one.hold is not None:
            held = ", ".join(
                f"mean {found.score:+.2f} by a strength of {found.strength:+.2f} at layer {layer}"
                for layer, found in (one.held or {}).items()
            )
            action = f"hold {one.vector} at {one.hold.score:+g} (strength up to {one.strength:g}): {held}"
        fired = "" if one.fired else "; its condition was never met"
        lines.append(shown(f"{action}: relative dose {_by_layer(one.relative_dose, '.2f')}{fired}"))
    return lines + [shown(warning, "yellow") for warning in steering.warnings]


def _amount(one: AppliedIntervention) -> str:
    """Returns by how much it acts. A rotation has its degrees at strength 1, which is left out."""
    strength = 1.0 if one.strength is None else one.strength
    return f"by {strength * one.degrees:g} degrees" if one.degrees is not None else f"at {strength:+g} {one.unit or ''}"


def raised_line(flag: RaisedFlag) -> str:
    """Describes a monitor that an answer raised, and whether it ended the answer."""
    bound = f"above {flag.above:g}" if flag.above is not None else f"below {flag.below:g}"
    score = "" if flag.score is None else f", score {flag.score:+.2f}"
    did = "ended the answer" if flag.action == "stop" else "was raised"
    return f"monitor {flag.monitor} {did}: {flag.vector} {bound}{score}"


def card_lines(vector: VectorAnswer) -> list[Text]:
    """Summarizes a vector: recommended layer and strength, held-out quality, and warnings."""
    card, recommended = vector.quality, vector.recommended
    lines = [
        Text.assemble((vector.id, "bold"), f"  {vector.method}, {len(vector.layers)} layers of {vector.model}"),
        Text(recommendation(recommended, (card and card.dose_response) or ())),
    ]
    if vector.maps:
        first, form = next(iter(vector.maps.items()))
        more = f" and {len(vector.maps) - 1} more" if len(vector.maps) > 1 else ""
        measured = [one.explained for at in vector.maps if card and (one := card.layers.get(int(at)))]
        if explained := [share for share in measured if share is not None]:
            lines.append(Text(f"the maps as fitted make {explained[-1]:.0%} of the change on held-out prompts"))
        lines.append(Text(f"map of rank {form.rank} ({form.activation}) at layer {first}{more}: operation apply"))
    if card is None:
        return [*lines, Text("no quality card: not extracted from examples")]
    if card.auroc is not None:
        between = " (95 % interval {:.2f} to {:.2f})".format(*card.auroc_interval) if card.auroc_interval else ""
        held = f"{card.holdout} of {card.pairs} pairs held out at a time"
        random = [one.random_auroc for layer in recommended.layers if (one := card.layers.get(layer))]
        against = f"; random directions {random[0]:.2f}" if random and random[0] is not None else ""
        lines.append(Text(f"held-out AUROC {card.auroc:.2f}{between}, {held}{against}"))
    if card.max_auroc is not None:
        largest = Estimate(card.max_auroc, card.max_auroc_interval)
        lines.append(Text(f"by the largest score over the tokens of a text: AUROC {estimate_text(largest, '.2f')}"))
    return lines + warning_lines(card.warnings)


def card_table(vector: VectorAnswer) -> Table:
    """Returns the quality card, one row per layer."""
    headings = ("layer", "scale", "AUROC", "interval", "separation", "pairs agree", "random AUROC")
    table = numeric_table("by layer", *headings)
    for layer, scale in vector.scale.items():
        quality = vector.quality.layers.get(int(layer)) if vector.quality else None
        cells = [""] * 5
        if quality is not None:
            between = "{:.2f} to {:.2f}".format(*quality.auroc_interval) if quality.auroc_interval else ""
            others = (quality.separation, quality.pair_agreement, quality.random_auroc)
            cells = [optional(quality.auroc), between, *map(optional, others)]
        style = "bold" if int(layer) in vector.recommended.layers else ""
        table.add_row(layer, f"{scale:.2f}", *cells, style=style)
    return table


def vectors_table(vectors: list[VectorAnswer]) -> Table:
    """Returns one row per vector."""
    table = Table("vector", "method", "recommended", "AUROC", "description")
    for vector in vectors:
        layers = vector.recommended.layers
        card = vector.quality.layers.get(layers[0]) if vector.quality and layers else None
        auroc = optional(card.auroc if card else None)
        row = (vector.id, vector.method, f"layer {', '.join(map(str, layers))}", auroc, vector.description)
        table.add_row(*map(shown, row))
    return table


def readout_table(answer: ReadoutAnswer, vector: str) -> Table:
    """Returns one row per token and one column per layer; the footer holds the means."""
    text = answer.texts[0]
    layers = text.readout[vector]
    table = Table(title=shown(answer.vectors[vector].id, "bold"), title_justify="left", show_footer=True)
    table.add_column("token", footer="mean")
    for layer, scores in layers.items():
        table.add_column(f"layer {layer}", justify="right", footer=f"{scores.mean:+.2f}")
    for token, *row in zip(text.tokens, *(one.scores for one in layers.values()), strict=True):
        colours = ["green" if score > 0.25 else "red" if score < -0.25 else "" for score in row]  # toward + and -
        table.add_row(
            _token(token.text),
            *(Text(f"{score:+.2f}", style=style) for score, style in zip(row, colours, strict=True)),
        )
    return table


def _token(text: str) -> Text:
    """Shows the spaces and line ends of a token."""
    return shown(repr(text)[1:-1] if text.strip() != text else text)


def lens_table(answer: LogitLensAnswer, token: int) -> Table:
    """Returns one row per layer with the predictions after one token of the prompt."""
    title = Text.assemble("after ", _token(answer.tokens[token].text))
    table = Table(Column("layer", justify="right"), "plain", title=title, title_justify="left")
    if any(layer.steered is not None for layer in answer.layers):
        table.add_column("steered")
    for layer in answer.layers:
        row: list[str | Text] = [str(layer.layer), _predictions(layer.plain[token])]
        if layer.steered is not None:
            row.append(_predictions(layer.steered[token]))
        table.add_row(*row)
    return table


def _predictions(row: Sequence[TopLogprob]) -> Text:
    return Text("  ").join(Text.assemble(_token(one.text), f" {100 * exp(one.logprob):.0f} %") for one in row)


def follow(client: Client, started: JobAnswer) -> dict[str, Any]:
    """Waits for a job with a progress bar and returns its result; Ctrl-C cancels it. Raises ApiError when it failed or was cancelled."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr) as progress:
        bar = progress.add_task("queued", total=None)

        def show(job: JobAnswer) -> None:
            done = job.progress
            progress.update(bar, description=done.message or job.status, completed=done.done, total=done.total or None)

        return client.wait_for_job(started, show)


def followed(client: Client, started: JobAnswer, kind: TypeAdapter[T], part: str | None = None) -> T:
    """Follows a job and returns its result, or a part of it. A result of another shape, such as a newer server's, is printed as JSON.

    Raises ApiError as `follow`, and where the result has another shape."""
    result = follow(client, started)
    try:
        return kind.validate_python(result if part is None else result[part])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'the result'}: {first['msg']}"
    except LookupError:
        reason = f"{part}: Field required"
    print_json(result)
    raise ApiError(
        f"job {started.id} ({started.kind}) succeeded, but this version of steer does not know the shape of its result: {reason}. "
        "A newer server may have made it. The result is printed as the server sent it",
        code="unreadable_answer",
    )


def live_comparison(client: Client, options: dict[str, Any], console: Console) -> Comparison:
    """Shows the first sample of every arm while it is generated, and returns the complete comparison."""
    texts: dict[str, str] = {}
    with Live(console=console, refresh_per_second=12, transient=True) as live:
        for event in client.compare_stream(**options):
            if isinstance(event, Comparison):
                return event
            if isinstance(event, ArmErrorAnswer):
                texts[event.arm] = event.error.message
            elif isinstance(event, TokenPiece) and event.choice == 0:
                texts[event.arm or ""] = texts.get(event.arm or "", "") + event.text
            width = max(24, console.width // max(len(texts), 1) - 2)
            live.update(Columns([Panel(shown(text), title=safe(arm), width=width) for arm, text in texts.items()]))
    raise AssertionError("the client raises when a stream ends without its last event")


def sweep_chart(answer: Comparison, vector: str) -> Table:
    """Returns the readout of each arm of a sweep as a bar from zero, next to its perplexity."""
    points = []
    for arm in answer.arms:
        if arm.metrics is not None and vector in arm.metrics.readout:
            strength = 0.0 if arm.name == "base" else float(arm.name)
            points.append((strength, arm.metrics.readout[vector].mean, arm.metrics.perplexity))
    ends = [0.0, *(mean for _, mean, _ in points)]
    low, high = min(ends), max(ends)
    columns = [Column(heading, justify="right") for heading in ("strength", "readout", "perplexity")]
    table = Table(*columns[:2], "", columns[2], box=None)
    for strength, mean, perplexity in sorted(points):
        bar = Bar(high - low, min(mean, 0.0) - low, max(mean, 0.0) - low, width=BAR_WIDTH, color="cyan")
        table.add_row(f"{strength:+g}", f"{mean:+.2f}", bar, optional(perplexity, ".1f"))
    return table
