"""Response models of /v1/jobs."""

from typing import Any, Literal

from steering.namespaces import SHARED
from steering.schemas.base import Answer, Page


class JobProgress(Answer):
    """Progress of a job."""

    done: int = 0
    total: int = 0
    message: str = ""


class JobError(Answer):
    """Why it failed."""

    code: str
    message: str


class JobAnswer(Answer):
    """A job. Also the data of its events."""

    namespace: str = SHARED
    id: str
    kind: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    progress: JobProgress
    result: dict[str, Any] | None
    error: JobError | None
    created_at: str
    updated_at: str


class JobPage(Page):
    """Newest first."""

    data: list[JobAnswer]
