"""Formats the tables of a run for a terminal and for README.md."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.bench import Bench, Measurement, Ratio
from benchmarks.profile import QUICK
from benchmarks.targets import TARGETS

RATIO_COLUMNS = ("what", "ours", "other", "ratio", "rounds", "target", "")
RESULT_COLUMNS = (
    "prompt", "rows", "contender", "work", "tokens/s", "decoding/s", "first token ms", "first p99 ms", "token ms", "pairs/s", "gap p99/median ms", "peak MB",
)  # fmt: skip
Row = Sequence[str]


def show(bench: Bench, machine: dict[str, Any], console: Console) -> None:
    """Prints both tables and the absent contenders."""
    device = f"{machine['accelerator']}, " if machine.get("accelerator") else ""
    title = f"{device}{machine['processor']}, {machine['processors']} processors, {machine['date']}, commit {machine['commit']}"
    console.print(_table(f"Ratios\n{title}", RATIO_COLUMNS, ratio_rows(bench)))
    console.print(_table("Results, medians over rounds", RESULT_COLUMNS, result_rows(bench)))
    for name, reason in bench.absent.items():
        console.print(f"absent: {name}: {reason.strip().splitlines()[-1]}", markup=False)


def markdown(bench: Bench) -> str:
    """Returns both tables in Markdown."""
    return "\n\n".join(
        "\n".join(["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)])
        for columns, rows in ((RATIO_COLUMNS, ratio_rows(bench)), (RESULT_COLUMNS, result_rows(bench)))
    )


def ratio_rows(bench: Bench) -> list[Row]:
    """Returns one row per target."""
    rows: list[Row] = []
    for key, target in TARGETS.items():
        ratio = bench.ratios.get(key)
        if ratio is None:
            rows.append((target.what, "", "", "", "", target.required(), "not measured"))
            continue
        verdict = {True: "met", False: "MISSED", None: ""}[ratio.met if bench.profile is not QUICK else None]
        values = [target.format(value) for value in (ratio.value, min(ratio.rounds), max(ratio.rounds))]
        between = f"{values[1]} to {values[2]}, {len(ratio.rounds)}"
        rows.append(
            (target.what, _number(ratio.ours), _number(ratio.other), values[0], between, target.required(), verdict)
        )
    return rows


def result_rows(bench: Bench) -> list[Row]:
    """Returns one row per measurement."""
    return [_result_row(one) for one in bench.measurements]


def _result_row(one: Measurement) -> Row:
    return (
        str(one.prompt or ""),
        str(one.rows),
        one.contender,
        one.work,
        _number(one.median("tokens_per_second")),
        _number(one.median("decode_per_second")),
        _number(one.median("first_token"), 1000),
        _number(one.median("first_token_p99"), 1000),
        _number(one.median("per_token"), 1000),
        _number(one.median("pairs_per_second")),
        _gaps(one),
        _number(one.median("peak_bytes"), 1e-6),
    )


def _gaps(one: Measurement) -> str:
    worst, middle = one.median("gap_p99"), one.median("gap_median")
    return "" if worst is None else f"{_number(worst, 1000)} / {_number(middle, 1000)}"


def _number(value: float | None, times: float = 1.0) -> str:
    """Formats with three digits, the precision that a run repeats."""
    if value is None:
        return ""
    value *= times
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row, style="red" if "MISSED" in row else None)
    return table


def restored(content: dict[str, Any], bench: Bench) -> Bench:
    """Returns a bench with the results of a saved run."""
    bench.measurements = [Measurement(**one) for one in content["measurements"]]
    bench.ratios = {
        one["key"]: Ratio(one["key"], one["ours"], one["other"], one["rounds"]) for one in content["ratios"]
    }
    bench.absent = content["absent"]
    return bench
