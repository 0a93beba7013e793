"""Finds the messages of a conversation in the text that a chat template makes of it."""

from collections.abc import Sequence

from steering.errors import InvalidRequest
from steering.model.safe_encoder import Span

MARK = 3
"""Characters of a marker: one that no message contains, three times, so that templates do not trim it away."""


def marker_texts(marker: str, count: int) -> list[str]:
    """Returns as many texts as there are messages, to be rendered in place of their contents."""
    return [marker * MARK] * count


def message_spans(text: str, contents: Sequence[str], marked: str, marker: str) -> list[Span]:
    """Returns the half-open range of characters in `text` with the content of each message.

    marked: the same conversation, rendered with `marker_texts` as contents. A template may trim a content. Raises InvalidRequest
    where it does not show every content as one text.
    """
    pieces = marked.split(marker * MARK)
    if len(pieces) != len(contents) + 1 or not text.startswith(pieces[0]):
        raise InvalidRequest("the chat template does not show each message as one text", param="messages")
    spans: list[Span] = []
    at = len(pieces[0])
    for content, following in zip(contents, pieces[1:], strict=True):
        shown = next((one for one in (content, content.strip()) if text.startswith(one + following, at)), None)
        if shown is None:
            raise InvalidRequest("the chat template does not show each message as one text", param="messages")
        spans.append((at, at + len(shown)))
        at += len(shown) + len(following)
    if at != len(text):
        raise InvalidRequest("the chat template does not show each message as one text", param="messages")
    return spans


def roles_of_tokens(tokens: Sequence[Span], messages: Sequence[Span], roles: Sequence[str]) -> tuple[str | None, ...]:
    """Returns for each token the role of the message that it has a character of, or None. All ranges are of characters, in order."""
    found: list[str | None] = []
    number = 0
    for start, end in tokens:
        while number < len(messages) and messages[number][1] <= start:
            number += 1
        inside = number < len(messages) and end > messages[number][0] and end > start
        found.append(roles[number] if inside else None)
    return tuple(found)
