"""A request whose steering failed in a worker never ends as if it had succeeded. Starts no engine."""

import pytest

from app.core.settings import Settings
from steering.engine.vllm.client import REPORT_SECONDS, Mailbox
from steering.engine.vllm.messages import FailureMessage, Message, ReportMessage, TokenMessage
from steering.errors import InternalError

FAILURE, REPORT = FailureMessage("a", "planted"), ReportMessage("a")
TOKEN = TokenMessage("a", 0, finite=True, readout={}, scores={})


def mailbox(*messages: Message, stages: int = 1) -> Mailbox:
    found = Mailbox(stages)
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


def test_a_step_may_take_as_long_as_the_watchdog_lets_it() -> None:
    """Engine S5: a report comes with the next step, which takes more than a minute for a large model on a CPU."""
    assert 2 * Settings.model_fields["watchdog_seconds"].default <= REPORT_SECONDS
