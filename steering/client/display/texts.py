"""Renders comparisons and readouts: texts with differences marked and tokens coloured."""

from html import escape

from steering.client.display.html import number, shade, table, warnings_list
from steering.schemas.comparison import ArmAnswer, CompareAnswer, DiffSpanAnswer
from steering.schemas.reading import ReadoutAnswer


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
    readouts = [
        number(metrics.readout[name].mean, True) if metrics and name in metrics.readout else "" for name in names
    ]
    return [*readouts, number(against.kl_mean if against else None), number(metrics.perplexity if metrics else None)]


def _marked(arm: ArmAnswer, index: int) -> str:
    against = arm.against_baseline
    if against is None or index >= len(against.diff):
        return ""
    return "".join(_span(span) for span in against.diff[index] if span.other)


def _span(span: DiffSpanAnswer) -> str:
    return escape(span.other) if span.kind == "equal" else f"<ins>{escape(span.other)}</ins>"


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
