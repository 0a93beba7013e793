"""A job watched from the terminal: a bar until it ends, Ctrl-C cancels it."""

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.cli.terminal import stderr
from steering.client.client import ApiError, Client
from steering.schemas.jobs import JobAnswer


def followed(client: Client, begun: JobAnswer) -> dict[str, Any]:
    """The job's result. Raises ApiError when it failed or was cancelled."""
    job = begun
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=stderr) as progress:
            bar = progress.add_task("queued", total=None)
            for job in client.job_events(begun.id):
                done = job.progress
                progress.update(
                    bar, description=done.message or job.status, completed=done.done, total=done.total or None
                )
    except KeyboardInterrupt:
        client.cancel_job(begun.id)
        raise
    if job.status != "succeeded" or job.result is None:
        error = job.error
        raise ApiError(
            error.message if error else f"the job was {job.status}", code=error.code if error else job.status
        )
    return job.result
