"""Describes the model of the ScriptedEngine: its tokenizer, its sizes, its planted direction and its head."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Prompt
from steering.engine.prompts import check_capture
from steering.errors import ContextLengthExceeded, InvalidRequest
from steering.model.info import ModelInfo
from steering.pairs import ChatMessage, ContinuedMessage

WORDS = (" the", " a", " day", " night", " warm", " cold", " good", " bad", " sea", " hill", " bird", " stone")
VOCABULARY = 256 + len(WORDS)

CONTROL = ("<|end|>", "<|start|>")
"""What a caller might take for control tokens."""

PLANTED_WORD = 257
"""The token that the logit lens finds in a residual along the planted direction."""

SCRIPTED_MODEL = ModelInfo(
    name="scripted",
    architecture="Scripted",
    fingerprint="scripted-fingerprint",
    d_model=8,
    layer_count=4,
    vocab_size=VOCABULARY,
    context_length=4096,
    dtype="float32",
    device="cpu",
    parameter_count=0,
    chat_template=True,
    typical_norms=(1.0, 2.0, 3.0, 4.0),
)


ASK = "<assistant>"
"""What its conversations have behind a message of the assistant that another one follows."""


class ScriptedTokenizer:
    """Token id = byte, and a word of WORDS for each id above 255."""

    def encode(self, prompt: Prompt, most: int | None = None) -> tuple[int, ...]:
        """See Tokenizer.encode."""
        ids = self._encode(prompt)
        if most is not None and len(ids) > most:
            raise ContextLengthExceeded(f"the prompt has {len(ids)} tokens; at most {most} fit", param="prompt")
        return ids

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return tuple(prompt.encode())
        if all(isinstance(part, ChatMessage) for part in prompt):
            messages = cast(tuple[ChatMessage, ...], prompt)
            text = "".join(f"<{one.role}>{one.content}\n" for one in messages) + ASK * messages[-1].asks
            return tuple(text.removesuffix("\n" if isinstance(messages[-1], ContinuedMessage) else "").encode())
        ids = cast(tuple[int, ...], prompt)
        if any(not 0 <= one < VOCABULARY for one in ids):
            raise InvalidRequest(f"token ids must be below {VOCABULARY}", param="prompt")
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """See Tokenizer.decode."""
        return b"".join(self._bytes(one) for one in token_ids).decode(errors="replace")

    def encode_with_roles(self, messages: tuple[ChatMessage, ...]) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
        """See Tokenizer.encode_with_roles."""
        found: list[str | None] = []
        for one in messages:
            around = [None] * len(f"<{one.role}>".encode())
            found += [*around, *[one.role] * len(one.content.encode()), None]
        found += [None] * len(ASK) * messages[-1].asks
        return self.encode(messages), tuple(found)

    def token_text(self, token_id: int) -> str:
        """See Tokenizer.token_text."""
        return self._bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """See Tokenizer.token_bytes."""
        return self._bytes(token_id)

    def control_strings(self, text: str) -> tuple[str, ...]:
        """See Tokenizer.control_strings."""
        return tuple(one for one in CONTROL if one in text)

    @staticmethod
    def _bytes(token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else WORDS[token_id - 256].encode()


def planted_direction() -> torch.Tensor:
    """Returns the unit vector (d_model,) that separates texts with "good" from texts with "bad"."""
    return torch.nn.functional.normalize(torch.arange(1.0, 9.0), dim=0)


def scripted_head() -> torch.Tensor:
    """Returns a head (d_model, vocab) of small numbers with the planted direction at `PLANTED_WORD`."""
    head = 0.01 * torch.randn(SCRIPTED_MODEL.d_model, VOCABULARY, generator=torch.Generator().manual_seed(5))
    head[:, PLANTED_WORD] = planted_direction()
    return head


def first_cut(whole: Capture, prompt: CapturePrompt, spec: CaptureSpec) -> Capture:
    """What `CapturePrompt.first` leaves of a reading of a whole text."""
    check_capture(prompt, len(whole.token_ids))
    start = prompt.first if spec.position == "all" else 0
    logits = None if whole.logits is None else whole.logits[prompt.first :]
    embeddings = None if whole.embeddings is None else whole.embeddings[start:]
    return replace(whole, activations=whole.activations[:, start:], logits=logits, embeddings=embeddings)
