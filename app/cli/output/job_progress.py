"""Follows a job in the terminal with a progress bar. Ctrl-C cancels the job."""

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.cli.output.terminal import stderr
from steering.client import ApiError, Client
from steering.schemas.resources import JobAnswer


def follow(client: Client, started: JobAnswer) -> dict[str, Any]:
    """Waits for a job and returns its result. Raises ApiError when it failed or was cancelled."""
    job = started
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=stderr) as progress:
            bar = progress.add_task("queued", total=None)
            for job in client.job_events(started.id):
                done = job.progress
                progress.update(
                    bar, description=done.message or job.status, completed=done.done, total=done.total or None
                )
    except KeyboardInterrupt:
        client.cancel_job(started.id)
        raise
    if job.status != "succeeded" or job.result is None:
        error = job.error
        raise ApiError(
            error.message if error else f"the job was {job.status}", code=error.code if error else job.status
        )
    return job.result
