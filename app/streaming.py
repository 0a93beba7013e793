"""A stream of events as an answer, with the server's patience and its end."""

from collections.abc import AsyncGenerator, AsyncIterator

from app.answers import job_answer
from app.jobs import FINAL, Jobs
from app.sse import Event, EventStream
from app.state import AppState


def event_stream(state: AppState, events: AsyncIterator[Event]) -> EventStream:
    """The answer to a native streaming request: failures are told as an `error` event."""
    return EventStream(events, state.patience, state.interrupted)


async def job_events(jobs: Jobs, job_id: str) -> AsyncGenerator[Event, None]:
    """`progress` for every change of a job, `done` for its last."""
    async for record in jobs.watch(job_id):
        name = "done" if record.status in FINAL else "progress"
        yield Event(job_answer(record).model_dump(mode="json"), name)
