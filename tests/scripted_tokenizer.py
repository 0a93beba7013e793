"""ScriptedTokenizer: ids and texts of the ScriptedEngine."""

from collections.abc import Sequence
from typing import cast

from steering.engine.api import Prompt
from steering.errors import InvalidRequest
from steering.pairs import ChatMessage

WORDS = (" the", " a", " day", " night", " warm", " cold", " good", " bad", " sea", " hill", " bird", " stone")
VOCABULARY = 256 + len(WORDS)


class ScriptedTokenizer:
    """Token id = byte, and a word of WORDS for each id above 255."""

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """See Tokenizer.encode."""
        if isinstance(prompt, str):
            return tuple(prompt.encode())
        if all(isinstance(part, ChatMessage) for part in prompt):
            messages = cast(tuple[ChatMessage, ...], prompt)
            return tuple("".join(f"<{one.role}>{one.content}\n" for one in messages).encode())
        ids = cast(tuple[int, ...], prompt)
        if any(not 0 <= one < VOCABULARY for one in ids):
            raise InvalidRequest(f"token ids must be below {VOCABULARY}", param="prompt")
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """See Tokenizer.decode."""
        return b"".join(self._bytes(one) for one in token_ids).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        """See Tokenizer.token_text."""
        return self._bytes(token_id).decode(errors="replace")

    @staticmethod
    def _bytes(token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else WORDS[token_id - 256].encode()
