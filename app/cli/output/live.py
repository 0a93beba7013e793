"""Live output: the progress of a job, arms of a comparison that are written next to each other, and bars of a sweep."""

from typing import Any

from rich.bar import Bar
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from app.cli.output.tables import optional
from app.cli.output.terminal import safe, shown, stderr
from steering.client import ApiError, Client
from steering.client.results import Comparison
from steering.schemas.comparison import ArmErrorAnswer
from steering.schemas.generation import TokenPiece
from steering.schemas.resources import JobAnswer

BAR_WIDTH = 48


def follow(client: Client, started: JobAnswer) -> dict[str, Any]:
    """Waits for a job with a progress bar and returns its result; Ctrl-C cancels it. Raises ApiError when it failed or was cancelled."""
    job = started
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=stderr) as progress:
            bar = progress.add_task("queued", total=None)
            for job in client.job_events(started.id):
                done = job.progress
                description = done.message or job.status
                progress.update(bar, description=description, completed=done.done, total=done.total or None)
    except KeyboardInterrupt:
        client.cancel_job(job.id)
        raise
    if job.status != "succeeded" or job.result is None:
        message, code = (job.error.message, job.error.code) if job.error else (f"the job was {job.status}", job.status)
        raise ApiError(message, code=code)
    return job.result


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
    ends = [0.0, *(mean for _, mean, _ in points)]
    low, high = min(ends), max(ends)
    figures = [Column(heading, justify="right") for heading in ("strength", "readout", "perplexity")]
    table = Table(*figures[:2], "", figures[2], box=None)
    for strength, mean, perplexity in sorted(points):
        bar = Bar(high - low, min(mean, 0.0) - low, max(mean, 0.0) - low, width=BAR_WIDTH, color="cyan")
        table.add_row(f"{strength:+g}", f"{mean:+.2f}", bar, optional(perplexity, ".1f"))
    return table
