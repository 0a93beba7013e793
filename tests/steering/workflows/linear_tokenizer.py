"""LinearTokenizer: the vocabulary of LinearEngine. Each word has a polarity: positive, negative or none."""

from collections.abc import Sequence

import torch

from steering.engine.api import Prompt
from steering.errors import InvalidRequest
from steering.pairs import ChatMessage

POSITIVE = ("lovely", "warm", "glad", "bright", "kind", "joyful")
NEGATIVE = ("grim", "cold", "sad", "dull", "cruel", "bitter")
NEUTRAL = (
    "the",
    "a",
    "road",
    "tree",
    "house",
    "river",
    "stone",
    "table",
    "walk",
    "read",
    "open",
    "door",
    "window",
    "letter",
    "morning",
    "train",
    "city",
    "market",
    "field",
    "paper",
    "bread",
    "water",
    "about",
    "over",
    "under",
    "with",
    "from",
    "into",
    "near",
    "far",
    "long",
    "short",
    "old",
    "new",
    "first",
    "next",
    "day",
)
MARKERS = ("<s>", "</s>", "<system>", "<user>", "<assistant>", "<?>")
BABBLE = "zzz"
WORDS = (*MARKERS, *POSITIVE, *NEGATIVE, *NEUTRAL, BABBLE)
IDS = {word: i for i, word in enumerate(WORDS)}
BEGIN, END, UNKNOWN = IDS["<s>"], IDS["</s>"], IDS["<?>"]


POLARITY = torch.tensor([float(word in POSITIVE) - float(word in NEGATIVE) for word in WORDS])
"""(vocab,): +1, -1 or 0."""


class LinearTokenizer:
    """Words by spaces; messages as marker, words, and a closing marker that opens the answer."""

    def __init__(self, system_role: bool = True) -> None:
        self._system_role = system_role

    def encode(self, prompt: Prompt, most: int | None = None) -> tuple[int, ...]:
        del most
        if isinstance(prompt, str):
            return (BEGIN, *self._words(prompt))
        if isinstance(prompt[0], ChatMessage):
            return self._conversation(prompt)
        if any(not isinstance(i, int) or not 0 <= i < len(WORDS) for i in prompt):
            raise InvalidRequest("a token id is not in the vocabulary", param="prompt")
        return prompt

    def _conversation(self, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        ids = [BEGIN]
        for message in messages:
            if message.role == "system" and not self._system_role:
                raise InvalidRequest("the chat template knows no system role", param="messages")
            ids += [IDS[f"<{message.role}>"], *self._words(message.content)]
        if messages[-1].role != "assistant" or messages[-1].asks:
            ids.append(IDS["<assistant>"])
        return tuple(ids)

    def _words(self, text: str) -> list[int]:
        return [IDS.get(word, UNKNOWN) for word in text.split()]

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(WORDS[i] for i in token_ids if WORDS[i] not in MARKERS)

    def encode_with_roles(self, messages: tuple[ChatMessage, ...]) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
        found: list[str | None] = [None]
        for message in messages:
            found += [None, *[message.role] * len(self._words(message.content))]
        asked = messages[-1].role != "assistant" or messages[-1].asks
        return self.encode(messages), (*found, *([None] if asked else []))

    def control_strings(self, text: str) -> tuple[str, ...]:
        return tuple(one for one in MARKERS if one in text)

    def token_text(self, token_id: int) -> str:
        return WORDS[token_id]

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if WORDS[token_id] in MARKERS else WORDS[token_id].encode()
