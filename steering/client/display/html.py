"""Building blocks of the rendered HTML: escaping, colours, tables and pages."""

from collections.abc import Iterable, Sequence
from html import escape

POSITIVE, NEGATIVE = "37, 99, 235", "217, 119, 6"
"""Blue and orange, which most colour-blind readers can distinguish."""
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
