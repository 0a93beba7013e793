"""`steer evaluate`, `report` and `test`: what a vector does by strength or layer, whether it may be deployed, and how well it separates
labelled texts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import TypeAdapter
from rich.table import Table
from rich.text import Text
from typer import BadParameter, Option

from app.cli.commands import (
    Output,
    Profile,
    Steer,
    Steering,
    SteerLayers,
    VectorName,
    command,
    csv_rows,
    file_argument,
    file_option,
    given,
    layers_of,
    lines_of,
    numbers,
    output_option,
    position_of,
    prompts_of,
    steering_of,
)
from app.cli.tables import estimate_text, followed, numeric_table, optional, warning_lines
from app.cli.terminal import shown, stderr
from steering.cards import own_position
from steering.client import Client
from steering.client.display import recommendation
from steering.client.results import BROKEN, CHECKS, Choices, Report, Vector, check_row, item_rows, seed_verdict
from steering.concepts.loader import load_neutral
from steering.errors import InvalidRequest
from steering.schemas.choices import ChoiceScores
from steering.schemas.evaluation import (
    CalibrationAnswer,
    DoseResponseAnswer,
    JudgementAnswer,
    LayerSweepAnswer,
    StrengthsAnswer,
)
from steering.strict_json import finite_number, load_json

EVALUATION: TypeAdapter[LayerSweepAnswer | DoseResponseAnswer | CalibrationAnswer] = TypeAdapter(
    StrengthsAnswer | CalibrationAnswer
)
SUFFIXES = (".html", ".md", ".json")
POSITIVE, NEGATIVE = {"1", "true", "yes", "positive", "pos"}, {"0", "false", "no", "negative", "neg"}
COLUMNS = {"text", "label", "prompt", "group"}
AT_ONCE = 500  # texts of one request
READ_AT_ONCE = 20  # where every token is read

Kind: TypeAlias = Literal["dose_response", "layer_sweep", "calibration"]
Judge: TypeAlias = Literal["self", "endpoint"]
Concept = Annotated[str | None, "Use the evaluation prompts of this starter concept."]
Items = Annotated[
    Path | None, output_option("Write the score of every answer, a line of JSON each.", metavar="FILE.jsonl")
]
Prompts = Annotated[Path | None, file_option('Use these prompts, JSON lines: {"prompt": "..."}')]


@command
def evaluate(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    vector: Annotated[str, "The vector to evaluate: name, or name@version."],
    kind: Annotated[
        Kind,
        "dose_response: how strongly; layer_sweep: at which layer, by which vector and operation; calibration: at which strength "
        "neutral text changes by 1 nat.",
    ] = "dose_response",
    concept: Concept = None,
    prompts: Prompts = None,
    strengths: Annotated[str | None, "Strengths, separated by commas."] = None,
    layers: Annotated[str | None, "recommended, all, 12,13 or 10:16 (half-open)."] = None,
    unit: Annotated[
        Literal["scale", "kl"] | None, "Unit of the strengths (layer_sweep): kl compares at equal KL."
    ] = None,
    against: Annotated[list[str] | None, "Another vector to compare (layer_sweep); repeatable."] = None,
    operations: Annotated[
        str | None,
        "add, clamp, apply or several, with commas (layer_sweep with --unit kl); of a calibration add or apply.",
    ] = None,
    random_directions: Annotated[int | None, "Random directions at the same dose (dose_response)."] = None,
    judge: Annotated[Judge | None, "Also rates the answers: the loaded model, or the operator's endpoint."] = None,
    judge_concept: Annotated[str | None, "What the judge looks for; default: the description."] = None,
    save: Annotated[bool, Option(help="Store it as the vector's next version (dose_response, calibration).")] = False,
    items: Items = None,
) -> Output:
    """Evaluate a vector: how text changes, what breaks, and what random directions do."""
    if judge is None and judge_concept is not None:
        raise BadParameter("needs --judge", param_hint="--judge-concept")
    if kind == "calibration" and items is not None:
        raise BadParameter("a calibration writes no answers that have a score", param_hint="--items")
    options = given(concept=concept, random_directions=random_directions, prompts=prompts_of(prompts), unit=unit)
    how = {"operation": operations} if kind == "calibration" else {"operations": operations and operations.split(",")}
    options |= given(vectors=against or None, **how)
    if strengths is not None:
        options["strengths"] = numbers(strengths, "--strengths", finite_number)
    if layers is not None:
        options["layers"] = layers_of(layers)
    if judge is not None:
        options["judge"] = given(by=judge, concept=judge_concept or None)
    if save:
        options["save"] = True
    result = followed(client, client.start_evaluation(kind, vector, **options), EVALUATION)
    if isinstance(result, CalibrationAnswer):
        saved = [] if result.saved is None else [shown(f"saved as {result.saved.id}")]
        return result, [_calibration_table(result), *warning_lines(result.warnings), *saved]
    wrote = _write_items(result, items)
    if isinstance(result, LayerSweepAnswer):
        return result, [_sweep_table(result), *_result_lines(result), *wrote]
    judged = [] if result.judgement is None else [_judge_table(result.judgement)]
    return result, [_dose_table(result), *judged, *_result_lines(result), *wrote]


def _write_items(result: DoseResponseAnswer | LayerSweepAnswer | Report, file: Path | None) -> list[Text]:
    """Writes one line of JSON per answer, if a file is given, and returns what is said of it."""
    if file is None:
        return []
    file.write_text("".join(f"{json.dumps(row)}\n" for row in item_rows(result)), encoding="utf-8")
    return [shown(f"wrote {file}")]


def _dose_table(result: DoseResponseAnswer) -> Table:
    layers = ", ".join(map(str, result.layers))
    headings = ("strength", "concept", "chance", "beyond chance", "perplexity", "repetition", "KL", "dose")
    table = numeric_table(f"{result.vector} at layer {layers}, read at {result.reading_layer}", *headings)
    for point in result.points:
        scores = f"{point.concept_score:+.2f}", optional(point.chance)
        advantage = "" if point.advantage is None else estimate_text(point.advantage)
        damage = f"x {point.perplexity_ratio:.2f}", f"{point.repetition:.2f}", optional(point.kl_neutral)
        table.add_row(f"{point.strength:+g}", *scores, advantage, *damage, f"{point.relative_dose:.2f}")
    return table


def _judge_table(judgement: JudgementAnswer) -> Table:
    """Returns one row per strength; ratings go from 0 to 2."""
    judge = "the loaded model" if judgement.by == "self" else "the operator's endpoint"
    headings = ("strength", "concept", "instruction", "fluency", "overall", "answers", "failed")
    table = numeric_table(f"judged by {judge}: {judgement.concept}", *headings)
    for point in judgement.points:
        ratings = (point.concept, point.instruction, point.fluency)
        means = ["-" if one is None else f"{one.mean:.2f}" for one in ratings]
        overall = "-" if point.overall is None else estimate_text(point.overall)
        table.add_row(f"{point.strength:+g}", *means, overall, str(point.judged), str(point.failed))
    return table


def _calibration_table(result: CalibrationAnswer) -> Table:
    """Returns one row per layer: the strengths of `limit` nats, and what was measured there."""
    table = numeric_table(
        f"{result.vector}: {result.limit:g} nat on {result.tokens} tokens", "layer", "-", "KL", "+", "KL"
    )
    for point in result.points:
        numbers = (point.negative, point.kl_negative, point.positive, point.kl_positive)
        table.add_row(str(point.layer), *map(optional, numbers))
    return table


def _sweep_table(result: LayerSweepAnswer) -> Table:
    """Returns one row per point; the best is bold, and those of the Pareto front are marked."""
    headings = (
        "prompts",
        "layer",
        "strength",
        "moved",
        "chance",
        "beyond chance",
        "perplexity",
        "KL",
        "dose",
        "AUROC",
        "",
    )
    table = numeric_table(f"{result.vector}, read at layer {result.reading_layer}", *headings)
    names = {point.vector for point in result.points}
    for point in result.points:
        advantage = "" if point.advantage is None else estimate_text(point.advantage)
        effect = estimate_text(point.moved), optional(point.chance), advantage
        damage = f"x {point.perplexity_ratio:.2f}", f"{point.kl:.2f}", f"{point.relative_dose:.2f}"
        marks = [point.vector] * (len(names) > 1) + [point.operation] * (point.operation != "add")
        marks += ["front"] * point.pareto
        where = point.split, str(point.layer), f"{point.strength:+.3g}"
        cells = *where, *effect, *damage, optional(point.auroc), " ".join(marks)
        table.add_row(*cells, style="bold" if point == result.best else "")
    return table


def _result_lines(result: DoseResponseAnswer | LayerSweepAnswer) -> list[Text]:
    """Returns the recommendation, then the warnings."""
    points = result.points if isinstance(result, DoseResponseAnswer) else ()
    lines = [Text("recommended: none" if result.recommended is None else recommendation(result.recommended, points))]
    if isinstance(result, DoseResponseAnswer) and result.anti_steered is not None:
        lines.append(Text(f"the score falls as the strength grows for {result.anti_steered:.0%} of the prompts"))
    if isinstance(result, DoseResponseAnswer) and result.saved is not None:
        lines.append(shown(f"saved as {result.saved.id}"))
    return lines + warning_lines(result.warnings)


@command
def report(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    vector: Annotated[str, "The vector whose concept is to move: name, or name@version."],
    strength: Annotated[float | None, "Strength of an add; default: the largest recommended one."] = None,
    profile: Annotated[str | None, "Judge this profile of the server."] = None,
    steering: Annotated[
        str | None, Option(metavar="JSON", help="Judge these interventions, as the API takes them.")
    ] = None,
    direction: Annotated[str | None, "up or down: how the concept is meant to move."] = None,
    concept: Concept = None,
    prompts: Prompts = None,
    seeds: Annotated[str, "Seeds of the answers, separated by commas; each is judged."] = "0,1",
    samples: Annotated[int, "Answers to each prompt under each steering."] = 1,
    varied: Annotated[int, "How many prompts are varied for robustness."] = 12,
    side_effects: Annotated[
        list[str] | None, "A starter concept or vector to read the texts along; repeatable."
    ] = None,
    out: Annotated[Path | None, output_option("File to write: .html, .md or .json.")] = None,
    items: Items = None,
) -> Output:
    """Judge a vector or profile before it is deployed: control, utility, robustness and side effects."""
    if out is not None and out.suffix not in SUFFIXES:
        raise BadParameter(f"expected a file ending in {', '.join(SUFFIXES)}, got {out.name}", param_hint="--out")
    options: dict[str, Any] = {"strength": strength, "direction": direction, "concept": concept}
    options |= {"steering": steering_of(profile=profile, steering=steering), "prompts": prompts_of(prompts)}
    options |= {"seeds": numbers(seeds, "--seeds", int), "samples": samples, "varied": varied}
    options["side_effects"] = side_effects
    found = followed(client, client.start_report(vector, **options), TypeAdapter(Report))
    wrote = _write_items(found, items)
    if out is not None:
        written: dict[str, Callable[[], str]] = {
            ".html": found.page,
            ".md": found.markdown,
            ".json": lambda: found.model_dump_json(indent=1) + "\n",
        }
        out.write_text(written[out.suffix](), encoding="utf-8")
        wrote.append(shown(f"wrote {out}"))
    tables = list[Table | Text]()
    for seed in found.seeds:
        title = f"seed {seed.seed}: {seed_verdict(seed)}"
        if seed.broken:
            tables.append(shown(f"{title}. {BROKEN}"))
            continue
        table = Table(*CHECKS, title=title)
        for gate in seed.gates:
            for check in gate.checks:
                table.add_row(gate.name, *check_row(check))
        tables.append(table)
    conclusion = shown(f"{found.vector}: {found.verdict()}{found.agreement()}")
    return found, [*tables, *warning_lines(found.warnings), conclusion, *wrote]


@command
def choices(
    client: Client,
    items: Annotated[
        Path,
        file_argument(
            'JSON lines: {"question": "...", "choices": ["...", "..."], "answer": 0}, the index of the right one.'
        ),
    ],
    steer: Steer = None,
    layers: SteerLayers = None,
    profile: Profile = None,
    steering: Steering = None,
) -> Output:
    """Ask questions of multiple choice, in every rotation of the choices, without and with steering."""
    asked = [load_json(line, f"{items.name}, line {number}") for number, line in lines_of(items)]
    steered = steering_of(steer, layers, profile, steering) or []
    result = followed(client, client.start_choices(asked, steering=steered), TypeAdapter(Choices))
    table = numeric_table(f"{len(result.items)} questions", "measure", "unsteered", "steered", "change")
    for name in ChoiceScores.model_fields:
        columns = (result.unsteered, result.steered, result.change)
        table.add_row(name, *("" if one is None else estimate_text(getattr(one, name), "+.3f") for one in columns))
    for letter in sorted({*result.unsteered.letters, *(result.steered.letters if result.steered else ())}):
        shares = [None if one is None else one.letters.get(letter, 0.0) for one in (result.unsteered, result.steered)]
        table.add_row(f"picks {letter}", *(optional(share, ".3f") for share in shares), "")
    return result, [table, *warning_lines(result.warnings)]


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One row. prompt: the user's message that the text answers. group: rows that belong together, such as a topic."""

    text: str
    positive: bool
    prompt: str | None
    group: str


@command
def separation(
    client: Client,
    vector: VectorName,
    labelled: Annotated[Path, file_argument("CSV with columns text and label, and prompt or group if wanted.")],
    positive: Annotated[str | None, "The label of the positive pole; default: 1, true, yes or positive."] = None,
    layer: Annotated[int | None, "Layer to read; default: the middle recommended one."] = None,
    position: Annotated[
        str | None,
        "max (the largest over the tokens), last, mean, response_mean, an offset, span:PHRASE or attending:PHRASE; default: the vector's own.",
    ] = None,
    threshold: Annotated[float, "Score from which a text counts as positive; 0 is the middle."] = 0.0,
) -> Output:
    """Test a vector on labelled texts: AUROC with its interval, and accuracy at a threshold."""
    rows = _read_labelled(labelled, positive)
    found = client.get_vector(vector)
    chosen = found.recommended.layers[len(found.recommended.layers) // 2] if layer is None else layer
    read_at = own_position(found.method, found.provenance) if position is None else position_of(position)
    phase = found.provenance.get("phase") if position is None else None
    result = measured(rows, _scores(client, found, chosen, read_at, phase, rows), threshold)
    if not found.centred:
        stderr.print("the vector has no class means, so that 0 is not the middle of its poles", style="yellow")
    auroc, at = result["auroc"], f"{found.id} at layer {chosen}, position {read_at}"
    at += f" over the tokens of {', '.join(phase)}" if phase else ""
    lines = [
        f"{at}: {result['positives']} positive and {result['negatives']} negative texts",
        "AUROC " + ("too few texts" if auroc is None else f"{auroc:.3f}{_interval(result['auroc_interval'])}"),
        f"accuracy {result['accuracy']:.3f}{_interval(result['accuracy_interval'])} at {threshold:+g}: "
        f"{result['true_positive_rate']:.0%} of the positive and {result['true_negative_rate']:.0%} of the negative texts",
    ]
    return {"vector": found.id, "layer": chosen, "position": read_at, "phase": phase, **result}, map(shown, lines)


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})"


def _read_labelled(file: Path, positive: str | None) -> list[LabelledText]:
    """Reads rows of a CSV file. Raises InvalidRequest for columns or labels that are not known, or with one class alone."""
    names, found = csv_rows(file)
    if not {"text", "label"} <= set(names) <= COLUMNS:
        columns = f"expected the columns text and label, and prompt or group; got {', '.join(names)}"
        raise InvalidRequest(f"{file.name}: {columns}")
    rows = [_labelled(row, f"{file.name}, line {number}", positive) for number, row in found]
    if len({row.positive for row in rows}) < 2:
        raise InvalidRequest(f"{file.name}: expected texts of both labels, got {len(rows)} of one")
    return rows


def _labelled(row: dict[str, Any], where: str, positive: str | None) -> LabelledText:
    text, label = (row["text"] or "").strip(), (row["label"] or "").strip()
    if not text:
        raise InvalidRequest(f"{where}: the text is empty")
    if positive is None and label.lower() not in POSITIVE | NEGATIVE:
        raise InvalidRequest(f"{where}: label {label[:40]!r} is not known; name the positive one with --positive")
    is_positive = label == positive if positive is not None else label.lower() in POSITIVE
    group = row.get("group") or f"#{where}"
    return LabelledText(text, is_positive, (row.get("prompt") or "").strip() or None, group)


def _scores(
    client: Client, vector: Vector, layer: int, position: Any, phase: Sequence[str] | None, rows: Sequence[LabelledText]
) -> list[float]:
    """Returns a score per text, in natural scales, centred where the vector has class means.

    For `response_mean` and phases texts are read as replies, to a neutral prompt where none is given. The score of a text is that of
    its activation at the position, for `max` the largest over its tokens without the first, and with phases the mean over their tokens.
    """
    import numpy as np  # noqa: PLC0415 - other commands start faster without
    from safetensors.numpy import load  # noqa: PLC0415 - imports numpy

    direction = np.asarray(client.get_directions(vector.id, [layer])[str(layer)])
    means = vector.means.get(str(layer))
    middle = 0.0 if means is None else (means[0] + means[1]) / 2
    texts: list[Any] = []
    for row, neutral in zip(rows, cycle(load_neutral()), strict=False):
        prompt = neutral if row.prompt is None and (phase or position == "response_mean") else row.prompt
        reply = {"role": "assistant", "content": row.text}
        texts.append(row.text if prompt is None else [{"role": "user", "content": prompt}, reply])
    scores: list[float] = []
    if phase or position == "max":
        alone = 0
        for start in range(0, len(texts), READ_AT_ONCE):
            part = texts[start : start + READ_AT_ONCE]
            answer = client.readout(part, vectors=[vector.id], layers=[layer], phase=phase)
            found = [text.readout[vector.id][str(layer)] for text in answer.texts]
            scores += [one.mean if phase else one.max for one in found]
            alone += len(answer.warnings)
        if alone:
            no_word = "only the first token is read, whose residual belongs to no word; their scores have no meaning"
            stderr.print(f"of {alone} of {len(texts)} texts {no_word}", style="yellow")
        return scores
    for start in range(0, len(texts), AT_ONCE):
        part = texts[start : start + AT_ONCE]
        read = load(client.activations(part, layers=[layer], position=position, steering=[]))[f"layer.{layer}"]
        scores += ((read @ direction - middle) / vector.scale[str(layer)]).tolist()
    return scores


def measured(rows: Sequence[LabelledText], scores: Sequence[float], threshold: float) -> dict[str, Any]:
    """Returns AUROC, and accuracy at a threshold, each with its interval over groups. That of accuracy is of Agresti and Coull (The
    American Statistician 52, 1998): with two more groups of mean size all right and two all wrong."""
    import numpy as np  # noqa: PLC0415 - other commands start faster without

    from steering.auroc import MIN_GROUPS, HeldOut, estimate_auroc  # noqa: PLC0415 - imports scipy

    values, labels = np.asarray(scores, dtype=np.float64), np.array([row.positive for row in rows])
    groups = np.unique([row.group for row in rows], return_inverse=True)[1]
    held = HeldOut(values[labels], values[~labels], groups[labels], groups[~labels])
    estimate = estimate_auroc([[held]])
    right = (values >= threshold) == labels
    size = len(right) / (count := int(groups.max()) + 1)
    counts = np.append(np.bincount(groups), [size] * 4)
    hits = np.append(np.bincount(groups, right), [size, size, 0.0, 0.0])
    middle = float(hits.sum() / counts.sum())
    reach = 1.96 * float(np.linalg.norm(hits - middle * counts) / counts.sum())
    return {
        "positives": int(labels.sum()),
        "negatives": int((~labels).sum()),
        "auroc": None if estimate is None else estimate.mean,
        "auroc_interval": None if estimate is None or estimate.interval is None else list(estimate.interval),
        "threshold": threshold,
        "accuracy": float(right.mean()),
        "accuracy_interval": None if count < MIN_GROUPS else [max(middle - reach, 0.0), min(middle + reach, 1.0)],
        "true_positive_rate": float(right[labels].mean()),
        "true_negative_rate": float(right[~labels].mean()),
    }
