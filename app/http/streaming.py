"""Starts the stream of events that answers a streaming request."""

import asyncio
from collections.abc import AsyncGenerator

from app.http.errors import body_of
from app.http.sse import Event, EventStream, ended, next_event
from app.services.jobs import FINAL
from app.services.namespace_jobs import NamespaceJobs
from app.services.resources import job_answer
from app.state import AppState
from steering.errors import SteeringError

FIRST_EVENT_SECONDS = 0.1
"""How long the status of a response waits for the first event."""


async def event_stream(state: AppState, events: AsyncGenerator[Event, None]) -> EventStream:
    """Returns the response of a native streaming request; failures are reported as an `error` event."""
    return EventStream(events, state.stream_timeouts, state.interrupted, await _first_event(events))


async def openai_stream(state: AppState, events: AsyncGenerator[Event, None]) -> EventStream:
    """Returns the response of an OpenAI streaming request; failures are reported as an error object, then [DONE]."""
    first = await _first_event(events)
    return EventStream(events, state.stream_timeouts, state.interrupted, first, _openai_failure)


def _openai_failure(error: SteeringError) -> tuple[Event, ...]:
    return Event(body_of(error)), Event("[DONE]")


async def _first_event(events: AsyncGenerator[Event, None]) -> "asyncio.Future[Event | None]":
    """Requests the first event. A failure within FIRST_EVENT_SECONDS (a full queue, say) is raised with its own status."""
    first = asyncio.ensure_future(next_event(events))
    try:
        await asyncio.wait({first}, timeout=FIRST_EVENT_SECONDS)
        if first.done():
            first.result()
    except BaseException:
        await ended(first)
        await events.aclose()
        raise
    return first


async def job_events(jobs: NamespaceJobs, job_id: str) -> AsyncGenerator[Event, None]:
    """Yields `progress` for every change of a job, `done` for its last."""
    async for record in jobs.watch(job_id):
        name = "done" if record.status in FINAL else "progress"
        yield Event(job_answer(record).model_dump(mode="json"), name)
