"""Scores given texts: the log-probability of each token, and whether greedy decoding would choose it."""

from collections.abc import Sequence

import torch

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Prompt, Tokenizer
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.schemas.reading import ScoredText
from steering.threads import run_in_thread
from steering.workflows.comparison.text_metrics import shared_prefix
from steering.workflows.reading.readout import grouped

LOGITS_BOUND = 32 * 1024 * 1024
"""Logits held at a time, in numbers (128 MB); more texts than fit are read in turn."""
SEPARATOR = "\n"
"""A text that tokenizers keep apart from what follows it; continuations are tokenized after it."""


def continuation_ids(tokenizer: Tokenizer, prompt: Prompt, text: str) -> tuple[int, ...]:
    """Returns the tokens of a text after a prompt, without those that the tokenizer puts at the beginning of a text.

    The tokens of the prompt stay as they are. Where the tokenizer would split the joined text within the prompt's last token (a
    merge across the boundary), and after a conversation, the text is tokenized as it would be after a line break.
    """
    if isinstance(prompt, str):
        before, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + text)
        if whole[: len(before)] == before and len(whole) > len(before):
            return whole[len(before) :]
    before, whole = tokenizer.encode(SEPARATOR), tokenizer.encode(SEPARATOR + text)
    return whole[shared_prefix(before, whole) :]


async def score(
    engine: Engine, rows: Sequence[tuple[int, ...]], prompt_length: int = 0, plan: SteeringPlan = UNSTEERED
) -> list[ScoredText]:
    """Reads every row once under the plan and returns the scores in order, without the prompt.

    rows: token ids, the prompt's first. prompt_length: of every row; 0: rows are whole texts, scored from their second token
    on, and all of a text counts as prompt for the plan. Raises what `Engine.capture` raises.
    """
    found: list[ScoredText] = []
    first = max(prompt_length, 1) - 1
    for part in parts(rows, first, engine.info.vocab_size):
        prompts = [CapturePrompt(ids, plan, prompt_length or None, first) for ids in part]
        captures = await engine.capture(prompts, CaptureSpec((), logits=True), priority=0)
        found += await run_in_thread(
            lambda read: [_scored(engine.tokenizer, one, prompt_length) for one in read], captures
        )
    return found


def parts(rows: Sequence[tuple[int, ...]], first: int, vocabulary: int) -> list[list[tuple[int, ...]]]:
    """Groups rows whose logits, from position `first` on, fit into LOGITS_BOUND; a longer row is alone."""
    return grouped(rows, lambda row: (len(row) - first) * vocabulary, LOGITS_BOUND)


def _scored(tokenizer: Tokenizer, capture: Capture, prompt_length: int) -> ScoredText:
    assert capture.logits is not None
    start = max(prompt_length, 1)
    ids = torch.tensor(capture.token_ids)
    logits = capture.logits[:-1].float()
    own = torch.log_softmax(logits, dim=-1).gather(1, ids[start:, None])[:, 0].tolist()
    greedy = (logits.argmax(dim=-1) == ids[start:]).tolist()
    unknown = [None] * (start - prompt_length)
    scored = capture.token_ids[prompt_length:]
    return ScoredText(
        token_ids=list(scored),
        tokens=[tokenizer.token_text(token) for token in scored],
        text=tokenizer.decode(scored),
        logprobs=[*unknown, *own],
        sum=sum(own),
        greedy=[*unknown, *greedy],
        all_greedy=all(greedy),
    )
