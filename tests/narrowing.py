"""Claims of tests about values that may be absent, in a form that the type checker understands."""

from typing import TypeVar

from steering.engine.api import Prompt
from steering.pairs import ChatMessage

T = TypeVar("T")


def present(value: T | None) -> T:
    """Asserts that a value is there, and returns it."""
    assert value is not None
    return value


def messages_of(prompt: Prompt) -> list[ChatMessage]:
    """Asserts that a prompt is a conversation, and returns its messages."""
    found = [one for one in prompt if isinstance(one, ChatMessage)]
    assert len(found) == len(prompt)
    return found
