"""Live output of comparisons: arms that are written next to each other, and bars of a sweep."""

from typing import Any

from rich.bar import Bar
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from app.cli.output.terminal import safe, shown
from steering.client import Client
from steering.client.results import Comparison
from steering.schemas.comparison import ArmErrorAnswer
from steering.schemas.generation import TokenPiece

BAR_WIDTH = 48


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
            live.update(_panels(texts, console.width))
    raise AssertionError("the client raises when a stream ends without its last event")


def _panels(texts: dict[str, str], width: int) -> Columns:
    each = max(24, width // max(len(texts), 1) - 2)
    return Columns([Panel(shown(text), title=safe(name), width=each) for name, text in texts.items()])


def sweep_chart(answer: Comparison, vector: str) -> Table:
    """Returns the readout of each arm of a sweep as a bar from zero, next to its perplexity."""
    points = []
    for arm in answer.arms:
        if arm.metrics is not None and vector in arm.metrics.readout:
            strength = 0.0 if arm.name == "base" else float(arm.name)
            points.append((strength, arm.metrics.readout[vector].mean, arm.metrics.perplexity))
    low, high = min([0.0, *(mean for _, mean, _ in points)]), max([0.0, *(mean for _, mean, _ in points)])
    table = Table(box=None)
    for heading in ("strength", "readout", "", "perplexity"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for strength, mean, perplexity in sorted(points):
        bar = Bar(high - low, min(mean, 0.0) - low, max(mean, 0.0) - low, width=BAR_WIDTH, color="cyan")
        table.add_row(f"{strength:+g}", f"{mean:+.2f}", bar, "" if perplexity is None else f"{perplexity:.1f}")
    return table
