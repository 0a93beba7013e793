"""Captures of fake engines."""

from dataclasses import replace

from steering.engine.api import Capture, CapturePrompt, CaptureSpec
from steering.errors import InvalidRequest


def first_cut(whole: Capture, prompt: CapturePrompt, spec: CaptureSpec) -> Capture:
    """What `CapturePrompt.first` leaves of a reading of a whole text."""
    if not 0 <= prompt.first < len(whole.token_ids):
        raise InvalidRequest(f"first {prompt.first} lies outside the text", param="first")
    start = prompt.first if spec.position == "all" else 0
    logits = None if whole.logits is None else whole.logits[prompt.first :]
    embeddings = None if whole.embeddings is None else whole.embeddings[start:]
    return replace(whole, activations=whole.activations[:, start:], logits=logits, embeddings=embeddings)
