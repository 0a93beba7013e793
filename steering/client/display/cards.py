"""Renders the quality card of a vector."""

from html import escape

from steering.client.display.charts import Line, line_chart
from steering.client.display.html import SERIES, number, table, warnings_list
from steering.schemas.vectors import QualityAnswer, VectorAnswer


def card_html(vector: VectorAnswer) -> str:
    """Returns title, recommendation, AUROC by layer against random directions, dose-response and warnings."""
    layers = ", ".join(map(str, vector.recommended.layers))
    parts = [
        f"<h2>{escape(vector.id)}</h2><p>{escape(vector.description)}</p>",
        f"<p>{escape(vector.method)}, {len(vector.layers)} layers of {escape(vector.model)}; "
        f"recommended: layer {layers}{_strength(vector)}</p>",
    ]
    if vector.quality is None:
        return "".join([*parts, "<p>No quality card: not extracted from examples.</p>"])
    parts += [_by_layer(vector.quality, vector), _dose_response(vector.quality), warnings_list(vector.quality.warnings)]
    return "".join(parts)


def _strength(vector: VectorAnswer) -> str:
    strength = vector.recommended.strength
    return "" if strength is None else f", strength {strength[0]:g} to {strength[1]:g}"


def _by_layer(card: QualityAnswer, vector: VectorAnswer) -> str:
    measured = [(int(layer), one) for layer, one in card.layers.items() if one.auroc is not None]
    if not measured:
        return ""
    xs = [float(layer) for layer, _ in measured]
    aurocs = [one.auroc if one.auroc is not None else float("nan") for _, one in measured]
    bands = [one.auroc_interval or (auroc, auroc) for (_, one), auroc in zip(measured, aurocs, strict=True)]
    lines = [Line("held-out AUROC with 95 % interval", SERIES[0], xs, aurocs, bands)]
    random = [one.random_auroc if one.random_auroc is not None else float("nan") for _, one in measured]
    lines.append(Line("random directions", SERIES[1], xs, random, dashed=True))
    best = vector.recommended.layers
    marked = (min(best) - 0.4, max(best) + 0.4) if best else None
    title = f"<h3>Separation by layer ({card.holdout} of {card.pairs} pairs held out)</h3>"
    return title + line_chart(lines, "layer", "AUROC", marked)


def _dose_response(card: QualityAnswer) -> str:
    if not card.dose_response:
        return ""
    points = sorted(card.dose_response, key=lambda point: point.strength)
    xs = [point.strength for point in points]
    lines = [
        Line("concept", SERIES[0], xs, [p.concept_score for p in points], [p.concept_interval for p in points]),
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
    return float("nan") if value is None else value
