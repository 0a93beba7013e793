"""ProgressBar: draws how far a job is, in a terminal or a notebook."""

from importlib import import_module
from typing import Any

from steering.schemas.resources import UNFINISHED, JobAnswer


class ProgressBar:
    """Draws a bar for each job that a client waits for: `Client(on_progress=ProgressBar())`. Needs tqdm."""

    def __init__(self) -> None:
        """Raises ModuleNotFoundError without tqdm."""
        self._new = import_module("tqdm.auto").tqdm
        self._bars = dict[str, Any]()

    def __call__(self, job: JobAnswer) -> None:
        """Draws one state of a job; the bar of a job that has ended stays."""
        bar = self._bars.get(job.id)
        if bar is None:
            bar = self._bars[job.id] = self._new(total=job.progress.total or None)
        bar.total, bar.n = job.progress.total or None, job.progress.done
        bar.set_description_str(f"{job.kind}: {job.progress.message or job.status}")
        if job.status not in UNFINISHED:
            self._bars.pop(job.id).close()
