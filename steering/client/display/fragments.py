"""Renders quality cards, comparisons with differences marked, and readouts with tokens coloured."""

from html import escape

from steering.client.display.html import SERIES, Line, line_chart, number, shade, table, warnings_list
from steering.schemas.comparison import ArmAnswer, CompareAnswer
from steering.schemas.reading import ReadoutAnswer
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
    aurocs = [_or_nan(one.auroc) for _, one in measured]
    bands = [one.auroc_interval or (auroc, auroc) for (_, one), auroc in zip(measured, aurocs, strict=True)]
    lines = [Line("held-out AUROC with 95 % interval", SERIES[0], xs, aurocs, bands)]
    random = [_or_nan(one.random_auroc) for _, one in measured]
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


def comparison_html(answer: CompareAnswer) -> str:
    """Returns one row per arm and sample; words that the baseline does not have are marked."""
    names = list(dict.fromkeys(name for arm in answer.arms if arm.metrics for name in arm.metrics.readout))
    rows: list[list[str]] = []
    for arm in answer.arms:
        if arm.error is not None:
            rows.append([escape(arm.name), escape(arm.error.message), *[""] * (len(names) + 2)])
            continue
        for index, choice in enumerate(arm.choices):
            first = index == 0
            text = f'<span class="text">{_marked(arm, index) or escape(choice.text)}</span>'
            numbers = _numbers(arm, names) if first else [""] * (len(names) + 2)
            rows.append([escape(arm.name) if first else "", text, *numbers])
    warnings = [warning for arm in answer.arms for warning in arm.steering.warnings]
    headings = ("arm", "answer", *names, "KL", "perplexity")
    note = f'<p class="muted">seed {answer.seed}, model {escape(answer.model)}, baseline {escape(answer.baseline)}</p>'
    return table(headings, rows, (0, 1)) + note + warnings_list(warnings)


def _numbers(arm: ArmAnswer, names: list[str]) -> list[str]:
    metrics, against = arm.metrics, arm.against_baseline
    readout = metrics.readout if metrics else {}
    readouts = [number(readout[name].mean, True) if name in readout else "" for name in names]
    return [*readouts, number(against.kl_mean if against else None), number(metrics.perplexity if metrics else None)]


def _marked(arm: ArmAnswer, index: int) -> str:
    against = arm.against_baseline
    if against is None or index >= len(against.diff):
        return ""
    texts = [(escape(span.other), span.kind == "equal") for span in against.diff[index] if span.other]
    return "".join(text if equal else f"<ins>{text}</ins>" for text, equal in texts)


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
    return "".join(parts)
