"""Renders results as HTML for notebooks and files: cards, comparisons, readouts and maps. Pages are self-contained.

Text of a model is escaped everywhere.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from typing import TypeAlias

from steering.cards import DosePoint, QualityCard, Recommended, verdict_without_proof
from steering.schemas.comparison import ArmAnswer, CompareAnswer
from steering.schemas.latent_space import LatentSpaceAnswer, LayerMapAnswer
from steering.schemas.reading import ReadoutAnswer
from steering.schemas.vectors import VectorAnswer

Points: TypeAlias = list[tuple[float, float]]
POSITIVE, NEGATIVE = "37, 99, 235", "217, 119, 6"  # blue and orange: most colour-blind readers can distinguish them
WIDTH, HEIGHT = 620, 220  # of a line chart
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34  # its margins
SERIES = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626")

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: .75rem 0; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid rgba(127,127,127,.35); text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
ins, mark { background: rgba(37,99,235,.22); color: inherit; text-decoration: none; border-radius: 3px; }
.muted { opacity: .7; } .text { white-space: pre-wrap; }
"""


def shade(score: float) -> str:
    """Returns a CSS background: blue for positive scores, orange for negative ones, strongest at 3."""
    strength = min(abs(score) / 3.0, 1.0)
    return f"background: rgba({POSITIVE if score > 0 else NEGATIVE}, {0.6 * strength:.2f})"


def number(value: float | None, sign: bool = False) -> str:
    """Formats a number with two decimals; None and NaN are empty."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return ""
    return f"{value:+.2f}" if sign else f"{value:.2f}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Iterable[int] = (0,)) -> str:
    """Returns a table. Cells are HTML already; columns outside `text_columns` are numbers, aligned to the right."""
    text = set(text_columns)
    kinds = ["" if index in text else ' class="n"' for index in range(len(headings))]
    head = "".join(f"<th{kind}>{escape(one)}</th>" for kind, one in zip(kinds, headings, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


@dataclass(frozen=True, slots=True)
class Line:
    """One series. band: lower and upper bounds of each point."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    band: Sequence[tuple[float, float]] | None = None
    dashed: bool = False


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, marked: tuple[float, float] | None = None) -> str:
    """Returns an SVG chart of all lines with a legend. marked: a range of x to shade."""
    lines = [_finite(line) for line in lines]
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in line.y] + [y for line in lines for bounds in line.band or () for y in bounds]
    if not xs:
        return ""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    x_axis, y_axis = _Axis(min(xs), max(xs), LEFT, right), _Axis(min(ys), max(ys), bottom, TOP)
    style = 'font-size="11" fill="currentColor" opacity="0.75"'
    middle = (TOP + bottom) // 2
    parts = [
        f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="currentColor" opacity="0.4"/>',
        f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle" {style}>{escape(x_label)}</text>',
        f'<text x="12" y="{middle}" text-anchor="middle" {style} transform="rotate(-90 12 {middle})">{escape(y_label)}</text>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = x_axis.value(share), y_axis.value(share)
        parts.append(f'<text x="{x_axis.at(x):.1f}" y="{bottom + 14}" text-anchor="middle" {style}>{x:.3g}</text>')
        parts.append(f'<text x="{LEFT - 5}" y="{y_axis.at(y) + 4:.1f}" text-anchor="end" {style}>{y:.2g}</text>')
    if marked is not None:
        start, end = (x_axis.at(min(max(value, x_axis.low), x_axis.high)) for value in marked)
        area = f'x="{start:.1f}" y="{TOP}" width="{end - start:.1f}" height="{bottom - TOP}"'
        parts.append(f'<rect {area} fill="currentColor" opacity="0.08"/>')
    parts += [_line(x_axis, y_axis, line) for line in lines]
    legend = " ".join(f'<span style="color:{line.colour}">&#9632;</span> {escape(line.name)}' for line in lines)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" style="max-width:100%;height:auto" role="img" '
        f'aria-label="{escape(y_label)} by {escape(x_label)}">{"".join(parts)}</svg><div class="muted">{legend}</div>'
    )


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)

    def value(self, share: float) -> float:
        return self.low + share * (self.high - self.low)


def _finite(line: Line) -> Line:
    chosen = [index for index, y in enumerate(line.y) if math.isfinite(y)]
    band = None if line.band is None else [line.band[index] for index in chosen]
    return replace(line, x=[line.x[index] for index in chosen], y=[line.y[index] for index in chosen], band=band)


def _line(x_axis: _Axis, y_axis: _Axis, line: Line) -> str:
    def points(values: Iterable[float]) -> list[str]:
        return [f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in zip(line.x, values, strict=True)]

    stroke = f'fill="none" stroke="{line.colour}" stroke-width="2"' + (' stroke-dasharray="4 4"' * line.dashed)
    drawn = f'<polyline points="{" ".join(points(line.y))}" {stroke}/>'
    if line.band:
        outline = points(high for _, high in line.band) + points(low for low, _ in line.band)[::-1]
        drawn = f'<polygon points="{" ".join(outline)}" fill="{line.colour}" opacity="0.15"/>' + drawn
    return drawn


def warnings_list(warnings: Iterable[str]) -> str:
    """Returns a list of warnings, empty without any."""
    items = "".join(f"<li>{escape(one)}</li>" for one in warnings)
    return f'<ul class="muted">{items}</ul>' if items else ""


def page(title: str, body: str, script: str = "") -> str:
    """Returns a complete document that needs no other file and makes no request."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{body}{f'<script>{script}</script>' if script else ''}</body></html>"
    )


def fragment(body: str) -> str:
    """Returns HTML for a notebook cell."""
    style = (
        ".steering-result ins { background: rgba(37,99,235,.22); text-decoration: none } "
        ".steering-result .text { white-space: pre-wrap } .steering-result td { text-align: left; vertical-align: top }"
    )
    return f'<div class="steering-result"><style>{style}</style>{body}</div>'


def recommendation(recommended: Recommended, points: Sequence[DosePoint] = ()) -> str:
    """Describes the recommended layers with the measured strengths and their margin beyond chance, or the strengths to try
    before a measurement. points: of the dose-response that measured them."""
    if recommended.basis == "measured":
        ranges = [_range(*ends) for ends in (recommended.negative, recommended.strength) if ends]
        words = verdict_without_proof(one.moves_on_average for one in points) if points else "not shown to steer"
        strengths = f"measured strength {' and '.join(ranges)}" if ranges else f"measured: {words}"
        if recommended.margin is not None:
            strengths += f", beyond chance by {recommended.margin:.3f} or more"
    elif recommended.strengths_to_try is None:
        strengths = "no strength to try: the vector is not shown to be better than chance"
    else:
        strengths = f"strengths to try {_range(*recommended.strengths_to_try)} (not measured)"
    return f"recommended: layer {', '.join(map(str, recommended.layers))}, {strengths}"


def _range(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def card_html(vector: VectorAnswer) -> str:
    """Returns title, recommendation, AUROC by layer against random directions, dose-response and warnings."""
    recommended, card = vector.recommended, vector.quality
    title = (
        f"<h2>{escape(vector.id)}</h2><p>{escape(vector.description)}</p>"
        f"<p>{escape(vector.method)}, {len(vector.layers)} layers of {escape(vector.model)}; "
        f"{escape(recommendation(recommended, (card and card.dose_response) or ()))}</p>"
    )
    if card is None:
        return title + "<p>No quality card: not extracted from examples.</p>"
    maximum = ""
    if card.max_auroc is not None:
        ends = " (95 % interval {:.2f} to {:.2f})".format(*card.max_auroc_interval) if card.max_auroc_interval else ""
        maximum = f"<p>By the largest score over the tokens of a text: AUROC {card.max_auroc:.2f}{ends}</p>"
    return title + _by_layer(card, recommended.layers) + maximum + _dose_response(card) + warnings_list(card.warnings)


def _by_layer(card: QualityCard, recommended: Sequence[int]) -> str:
    measured = [(layer, one) for layer, one in card.layers.items() if one.auroc is not None]
    if not measured:
        return ""
    xs = [float(layer) for layer, _ in measured]
    aurocs = [_or_nan(one.auroc) for _, one in measured]
    bands = [one.auroc_interval or (auroc, auroc) for (_, one), auroc in zip(measured, aurocs, strict=True)]
    random = [_or_nan(one.random_auroc) for _, one in measured]
    lines = [
        Line("held-out AUROC with 95 % interval", SERIES[0], xs, aurocs, bands),
        Line("random directions", SERIES[1], xs, random, dashed=True),
    ]
    marked = (min(recommended) - 0.4, max(recommended) + 0.4) if recommended else None
    title = f"<h3>Separation by layer ({card.holdout} of {card.pairs} pairs held out)</h3>"
    return title + line_chart(lines, "layer", "AUROC", marked)


def _dose_response(card: QualityCard) -> str:
    if not card.dose_response:
        return ""
    points = sorted(card.dose_response, key=lambda point: point.strength)
    xs = [point.strength for point in points]
    bands = [point.concept_interval or (point.concept_score, point.concept_score) for point in points]
    lines = [
        Line("concept", SERIES[0], xs, [p.concept_score for p in points], bands),
        Line("random directions", SERIES[1], xs, [_or_nan(p.random_score) for p in points], dashed=True),
        Line("perplexity ratio", SERIES[2], xs, [p.perplexity_ratio for p in points]),
    ]
    rows = [
        [number(p.strength, True), number(p.concept_score, True), number(p.perplexity_ratio), number(p.relative_dose)]
        for p in points
    ]
    headings = ("strength", "concept", "perplexity ratio", "relative dose")
    return "<h3>Dose-response</h3>" + line_chart(lines, "strength", "score") + table(headings, rows, ())


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def readouts_of(answer: CompareAnswer) -> list[str]:
    """Returns the names of the readouts that a comparison measured, in order."""
    return list(dict.fromkeys(name for arm in answer.arms if arm.metrics for name in arm.metrics.readout))


def figures(arm: ArmAnswer, names: Sequence[str]) -> list[float | None]:
    """Returns the mean of each readout of an arm, its KL and its perplexity; None for what was not measured."""
    metrics, against = arm.metrics, arm.against_baseline
    readout = metrics.readout if metrics else {}
    means = [readout[name].mean if name in readout else None for name in names]
    return [*means, against.kl_mean if against else None, metrics.perplexity if metrics else None]


def words(arm: ArmAnswer, index: int) -> list[tuple[str, bool]]:
    """Returns the parts of a sample's text, each with whether the baseline has it too; empty where nothing was compared."""
    against = arm.against_baseline
    if against is None or index >= len(against.diff):
        return []
    return [(span.other, span.kind == "equal") for span in against.diff[index] if span.other]


def comparison_html(answer: CompareAnswer) -> str:
    """Returns one row per arm and sample; words that the baseline does not have are marked."""
    names = readouts_of(answer)
    empty = [""] * (len(names) + 2)
    rows: list[list[str]] = []
    for arm in answer.arms:
        if arm.error is not None:
            rows.append([escape(arm.name), escape(arm.error.message), *empty])
            continue
        *readouts, kl, perplexity = figures(arm, names)
        numbers = [*(number(mean, True) for mean in readouts), number(kl), number(perplexity)]
        for index, choice in enumerate(arm.choices):
            parts = [(escape(text), equal) for text, equal in words(arm, index) or [(choice.text, True)]]
            marked = "".join(text if equal else f"<ins>{text}</ins>" for text, equal in parts)
            name, measured = (escape(arm.name), numbers) if index == 0 else ("", empty)
            rows.append([name, f'<span class="text">{marked}</span>', *measured])
    warnings = [warning for arm in answer.arms for warning in arm.steering.warnings]
    headings = ("arm", "answer", *names, "KL", "perplexity")
    note = f'<p class="muted">seed {answer.seed}, model {escape(answer.model)}, baseline {escape(answer.baseline)}</p>'
    return table(headings, rows, (0, 1)) + note + warnings_list(warnings)


def readout_html(answer: ReadoutAnswer) -> str:
    """Returns each text once per vector and layer, its tokens coloured by score."""
    parts: list[str] = []
    for text in answer.texts:
        for vector, layers in text.readout.items():
            for layer, scores in layers.items():
                title = f"{escape(answer.vectors[vector].id)}, layer {escape(layer)}, mean {number(scores.mean, True)}"
                tokens = "".join(
                    f'<span style="{shade(score)}" title="{number(score, True)}">{escape(token.text)}</span>'
                    for token, score in zip(text.tokens, scores.scores, strict=True)
                )
                parts.append(f'<p class="muted">{title}</p><p class="text">{tokens}</p>')
    return "".join(parts) + warnings_list(answer.warnings)


def layers_of_map(answer: LatentSpaceAnswer) -> list[tuple[str, LayerMapAnswer, float | None]]:
    """Returns each layer of a map with its title and the AUROC of its labels, where there is one."""
    found: list[tuple[str, LayerMapAnswer, float | None]] = []
    for layer in ([answer.embedding] if answer.embedding else []) + list(answer.layers):
        auroc = layer.separability.auroc if layer.separability else None
        title = "input embeddings" if layer.layer is None else f"layer {layer.layer}"
        found.append((title, layer, None if auroc is None or math.isnan(auroc) else auroc))
    return found


def map_page(answer: LatentSpaceAnswer, texts: Sequence[str], labels: Sequence[str] | None = None) -> str:
    """Returns a self-contained page. Raises ValueError for a map in three dimensions."""
    layers, names = layers_of_map(answer), sorted(set(labels or []))
    drawn = zip(layers, aligned([layer for _, layer, _ in layers]), strict=True)
    data = {
        "texts": list(texts),
        "labels": [names.index(label) for label in labels] if labels else [0] * len(texts),
        "names": names,
        "colours": SERIES,
        "layers": [{"name": name, "points": points, "auroc": auroc} for (name, _, auroc), points in drawn],
    }
    title = f"{len(texts)} texts in {answer.model}, {answer.method}"
    script = (files("steering.client") / "map.js").read_text(encoding="utf-8")
    safe = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # a text must not close the script element
    return page(title, f'<h1>{escape(title)}</h1><div id="map"></div>', f"const DATA = {safe};\n{script}")


def aligned(layers: Sequence[LayerMapAnswer]) -> list[Points]:
    """Returns the points of each layer, centred, scaled to unit size, and rotated to match the layer before.

    The rotation, mirrored if that fits better, is the orthogonal Procrustes solution.
    """
    result: list[Points] = []
    for layer in layers:
        count = len(layer.points)
        if {len(point) for point in layer.points} != {2}:
            raise ValueError("expected a map in two dimensions")
        x_mean, y_mean = (sum(axis) / count for axis in zip(*layer.points, strict=True))
        centred = [(x - x_mean, y - y_mean) for x, y in layer.points]
        size = math.sqrt(sum(x * x + y * y for x, y in centred) / count) or 1.0
        points = [(x / size, y / size) for x, y in centred]
        result.append(_turned(points, result[-1]) if result else points)
    return result


def _turned(points: Points, before: Points) -> Points:
    """Rotates points of unit size, as complex numbers, to those of the layer before, or their mirror image if that comes nearer."""
    plain = [complex(*point) for point in points]
    fitted = dict[float, list[complex]]()
    for own in (plain, [one.conjugate() for one in plain]):
        turn = sum((one.conjugate() * complex(*other) for one, other in zip(own, before, strict=True)), 0j)
        fitted.setdefault(abs(turn), [one * (turn / abs(turn) if turn else 1.0) for one in own])
    return [(one.real, one.imag) for one in fitted[max(fitted)]]
