"""Turns token ids into text that may be sent: whole characters, and nothing that may belong to a stop string."""

from steering.engine.transformers.sequence import Sequence


def advance(sequence: Sequence, token_id: int) -> tuple[str, bool]:
    """Adds one token. Returns (text that can be sent, whether a stop string was found)."""
    assert sequence.decoder is not None
    return _release(sequence, sequence.decoder.step(token_id))


def finish(sequence: Sequence) -> str:
    """Returns the text that was held back, as nothing follows."""
    assert sequence.decoder is not None
    text, stopped = _release(sequence, sequence.decoder.flush())
    if stopped:
        return text
    held, sequence.held_text = sequence.held_text, ""
    return text + held


def _release(sequence: Sequence, piece: str) -> tuple[str, bool]:
    stops = sequence.sampling.stop
    if not stops:
        return piece, False
    text = sequence.held_text + piece
    found = [start for stop in stops if (start := text.find(stop)) >= 0]
    if found:
        sequence.held_text = ""
        return text[: min(found)], True
    keep = max((_overlap(text, stop) for stop in stops), default=0)
    sequence.held_text = text[len(text) - keep :]
    return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of the text that is a beginning of the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
