"""A stream of events as an answer, with the server's patience and its end."""

import asyncio
from collections.abc import AsyncGenerator

from app.http.sse import Event, EventStream, ended, next_event
from app.services.jobs import FINAL, Jobs
from app.services.responses import job_answer
from app.state import AppState

EARLY_SECONDS = 0.1
"""How long the first event may keep the answer's status waiting."""


async def event_stream(state: AppState, events: AsyncGenerator[Event, None]) -> EventStream:
    """The answer to a native streaming request: failures are told as an `error` event.

    What fails at once (a full queue, say) is raised, so that it is answered with its own status and not with 200.
    """
    first = asyncio.ensure_future(next_event(events))
    try:
        await asyncio.wait({first}, timeout=EARLY_SECONDS)
        if first.done():
            first.result()
    except BaseException:
        await ended(first)
        await events.aclose()
        raise
    return EventStream(events, state.patience, state.interrupted, first)


async def job_events(jobs: Jobs, job_id: str) -> AsyncGenerator[Event, None]:
    """`progress` for every change of a job, `done` for its last."""
    async for record in jobs.watch(job_id):
        name = "done" if record.status in FINAL else "progress"
        yield Event(job_answer(record).model_dump(mode="json"), name)
