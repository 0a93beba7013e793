"""A request whose steering failed in a worker never ends as if it had succeeded, and steps alone are progress. Starts no engine."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams as VllmSampling

from app.core.settings import Settings
from steering.engine.api import GenerationRequest, SamplingParams
from steering.engine.vllm.client import REPORT_SECONDS, Mailbox, SchedulerStats, Task, VllmClient, _stat_logger
from steering.engine.vllm.messages import FailureMessage, Message, PlanBook, ReportMessage, TokenMessage
from steering.errors import InternalError, NonfiniteActivations
from steering.plan.types import UNSTEERED

FAILURE, REPORT = FailureMessage("a", "planted"), ReportMessage("a")
TOKEN = TokenMessage("a", 0, finite=True, readout={}, scores={})
NONFINITE = TokenMessage("a", 1, finite=False, readout={}, scores={})


def mailbox(*messages: Message, stages: int = 1, reads: bool = True) -> Mailbox:
    found = Mailbox(stages, reads=reads)
    for message in messages:
        found.receive(message)
    return found


@pytest.mark.parametrize("messages", [(FAILURE, REPORT), (REPORT, FAILURE), (REPORT, REPORT, FAILURE)])
async def test_a_failure_next_to_reports_ends_the_request(messages: tuple[Message, ...]) -> None:
    with pytest.raises(InternalError, match="steering failed"):
        await mailbox(*messages, stages=len(messages) - 1).reports()


async def test_a_failure_next_to_a_token_ends_the_request() -> None:
    with pytest.raises(InternalError, match="steering failed"):
        await mailbox(TOKEN, FAILURE).token(0)


async def test_messages_of_all_stages_are_joined() -> None:
    box = mailbox(TOKEN, REPORT, TOKEN, REPORT, stages=2)
    assert (await box.token(0)).stages == 2
    assert len(await box.reports()) == 2


async def test_where_nothing_is_read_a_token_waits_for_no_message() -> None:
    box = mailbox(reads=False)
    assert (await box.token(0)).finite
    box.receive(FAILURE)
    with pytest.raises(InternalError, match="steering failed"):
        await box.token(1)


@pytest.mark.parametrize("reads", [True, False])
async def test_a_token_that_means_nothing_ends_the_request_there_and_not_before(reads: bool) -> None:
    """Its message may come after the token, and then ends the request with the next one, or with its report."""
    box = mailbox(TOKEN, NONFINITE, REPORT, reads=reads)
    assert (await box.token(0)).finite
    assert len(await box.reports()) == 1, "a token that was computed and not used"
    for waits in (box.token(1), box.token(1), box.reports()):
        with pytest.raises(NonfiniteActivations):
            await waits


async def test_a_token_that_means_nothing_may_be_the_one_that_ends_the_answer() -> None:
    """It is no part of the answer, and its message may come after it."""
    box = mailbox(reads=False)
    assert (await box.token(0)).finite
    box.receive(TokenMessage("a", 0, finite=False, readout={}, scores={}))
    box.receive(REPORT)
    with pytest.raises(NonfiniteActivations):
        await box.reports()


def test_a_step_may_take_as_long_as_the_watchdog_lets_it() -> None:
    """Engine S5: a report comes with the next step, which takes more than a minute for a large model on a CPU."""
    assert 2 * Settings.model_fields["watchdog_seconds"].default <= REPORT_SECONDS


def test_every_step_is_progress_also_without_outputs() -> None:
    """A prompt of many steps has no output before its last one."""
    stats = SchedulerStats(progressed=0.0)
    logger = _stat_logger(stats)(None)
    logger.record(None, None)
    assert stats.progressed == 0.0
    logger.record(SimpleNamespace(kv_cache_usage=0.5), None)
    assert (stats.steps, stats.usage) == (1, 0.5)
    assert stats.progressed > 0.0


class HungLlm:
    """A vLLM whose step does not end."""

    async def generate(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield


async def test_requests_that_come_while_a_step_hangs_are_no_progress() -> None:
    client = VllmClient.__new__(VllmClient)
    llm: Any = HungLlm()
    channel: Any = SimpleNamespace(stages=1, boxes={})
    client._llm, client._channel, client._plans = llm, channel, PlanBook(client.call)
    client._numbers, client.hashes_know_steering, client.active = count(), False, 0
    client.scheduler = SchedulerStats(progressed=0.0)
    task = Task((1,), 1, GenerationRequest((1,), SamplingParams(), UNSTEERED), VllmSampling())
    async with client.running(task):
        assert client.scheduler.progressed > 0.0, "no request ran before"
        client.scheduler.progressed = 0.0
        async with client.running(task):
            assert client.scheduler.progressed == 0.0
    async with client.running(task):
        assert client.scheduler.progressed > 0.0
