"""A request whose steering failed in a worker never ends as if it had succeeded. Starts no engine."""

import pytest

from app.core.settings import Settings
from steering.engine.vllm.client import REPORT_SECONDS, Mailbox
from steering.engine.vllm.messages import FailureMessage, Message, ReportMessage, TokenMessage
from steering.errors import InternalError, NonfiniteActivations

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
        await mailbox(*messages, stages=len(messages) - 1).reports(0)


async def test_a_failure_next_to_a_token_ends_the_request() -> None:
    with pytest.raises(InternalError, match="steering failed"):
        await mailbox(TOKEN, FAILURE).token(0)


async def test_messages_of_all_stages_are_joined() -> None:
    box = mailbox(TOKEN, REPORT, TOKEN, REPORT, stages=2)
    assert (await box.token(0)).stages == 2
    assert len(await box.reports(1)) == 2


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
    assert len(await box.reports(1)) == 1, "a token that was computed and not used"
    for waits in (box.token(1), box.token(1), box.reports(2)):
        with pytest.raises(NonfiniteActivations):
            await waits


def test_a_step_may_take_as_long_as_the_watchdog_lets_it() -> None:
    """Engine S5: a report comes with the next step, which takes more than a minute for a large model on a CPU."""
    assert 2 * Settings.model_fields["watchdog_seconds"].default <= REPORT_SECONDS
