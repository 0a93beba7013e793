"""Writes deployment reports as Markdown and as a self-contained HTML page."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import TypeAlias

from steering.client.display import page, table, warnings_list
from steering.schemas.evaluation import CheckAnswer, ReportAnswer, SeedReportAnswer

Row: TypeAlias = tuple[str, ...]
CHECKS = ("gate", "check", "value", "demanded", "verdict")
EFFECTS = ("side effect on", "layer", "shift")
TEXTS = ("variation", "prompt", "unsteered", "steered", "moved")
_RELATIONS = {"above": ">", "at_most": "<=", "at_least": ">="}


def verdict(passed: bool) -> str:
    """Returns the word for a verdict."""
    return "pass" if passed else "FAIL"


def check_row(check: CheckAnswer) -> Row:
    """Returns name, value with interval, threshold and verdict of a check."""
    relation = f"{_RELATIONS[check.relation]} {check.threshold:.2f}"
    return check.name, _measured(check.value, check.interval), relation, verdict(check.passed)


def agreement(report: ReportAnswer) -> str:
    """Returns whether the seeds agree, as the end of a sentence; nothing for one seed."""
    if len(report.seeds) < 2:
        return ""
    return "; the seeds agree" if report.seeds_agree else "; the seeds do not agree"


def report_markdown(report: ReportAnswer) -> str:
    """Returns the whole report: verdicts, checks, side effects and texts of each seed."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: ReportAnswer) -> Iterator[str]:
    yield f"# Deployment report: {report.vector}\n"
    yield f"**{verdict(report.passed)}**, {_circumstances(report)}\n"
    for item in report.interventions:
        yield f"- `{item.model_dump_json(exclude_defaults=True)}`"
    for warning in report.warnings:
        yield f"- warning: {_cell(warning)}"
    for seed in report.seeds:
        yield from _seed_lines(seed)


def _circumstances(report: ReportAnswer) -> str:
    return f"{report.model}, concept meant to go {report.direction}{agreement(report)}."


def _seed_lines(seed: SeedReportAnswer) -> Iterator[str]:
    yield f"\n## Seed {seed.seed}: {verdict(seed.passed)}\n"
    if seed.broken:
        yield "The activations became non-finite."
        return
    for columns, rows in _tables(seed):
        yield from _table(columns, rows)
        yield ""


def _tables(seed: SeedReportAnswer) -> Iterator[tuple[Row, list[Row]]]:
    """Columns and rows of the checks, of the side effects and of the texts."""
    yield CHECKS, [(gate.name, *check_row(check)) for gate in seed.gates for check in gate.checks]
    yield (
        EFFECTS,
        [(one.vector, str(one.layer), _measured(one.shift.mean, one.shift.interval)) for one in seed.side_effects],
    )
    yield TEXTS, [(one.variation, one.prompt, one.unsteered, one.steered, f"{one.moved:+.2f}") for one in seed.texts]


def _table(columns: Row, rows: Sequence[Row]) -> Iterator[str]:
    for row in (columns, ("---",) * len(columns), *rows):
        yield f"| {' | '.join(_cell(one) for one in row)} |"


def _measured(value: float, interval: Sequence[float] | None) -> str:
    between = f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
    return f"{value:+.2f}{between}"


def _cell(text: str) -> str:
    """One line of a table; markup in a model's text is shown as it is."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(plain.split()).replace("|", "\\|").replace("<", "&lt;")


def report_html(report: ReportAnswer) -> str:
    """Returns a page without scripts; texts are escaped."""
    notes = [item.model_dump_json(exclude_defaults=True) for item in report.interventions]
    body = [
        f"<h1>Deployment report: {escape(report.vector)}</h1>",
        f"<p><strong>{verdict(report.passed)}</strong>, {escape(_circumstances(report))}</p>",
        warnings_list([*notes, *(f"warning: {warning}" for warning in report.warnings)]),
    ]
    for seed in report.seeds:
        body.append(f"<h2>Seed {seed.seed}: {verdict(seed.passed)}</h2>")
        for columns, rows in _tables(seed):
            body.append(table(columns, [[escape(cell) for cell in row] for row in rows], range(len(columns))))
    return page(f"Deployment report: {report.vector}", "\n".join(body))
