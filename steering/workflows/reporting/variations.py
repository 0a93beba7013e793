"""Variations of prompts for robustness: paraphrased instructions, role prompts, typos and encodings."""

import random
from collections.abc import Callable, Mapping
from typing import TypeAlias

from steering.engine.api import Prompt
from steering.pairs import ChatMessage

Change: TypeAlias = Callable[[Prompt, int], Prompt]
"""(prompt, seed) -> the varied prompt."""
TYPOS = 0.08
"""Share of the letters that are exchanged with the next one."""
_LOOKALIKES = str.maketrans({"e": "3", "o": "0", "i": "1", "a": "4"})


def _in_words(change: Callable[[str, int], str]) -> Change:
    """Applies a change of text to a plain prompt, or to the last message of the user."""

    def changed(prompt: Prompt, seed: int) -> Prompt:
        if isinstance(prompt, str):
            return change(prompt, seed)
        messages = [one for one in prompt if isinstance(one, ChatMessage)]
        last = max((n for n, one in enumerate(messages) if one.role == "user"), default=None)
        if last is None:
            return prompt
        messages[last] = ChatMessage("user", change(messages[last].content, seed))
        return tuple(messages)

    return changed


def _typos(text: str, seed: int) -> str:
    rng, letters = random.Random(seed), list(text)  # noqa: S311 - reproducible typos
    for index in range(len(letters) - 1):
        if letters[index].isalpha() and letters[index + 1].isalpha() and rng.random() < TYPOS:
            letters[index], letters[index + 1] = letters[index + 1], letters[index]
    return "".join(letters)


def _role(role: str) -> Change:
    """Puts a system message before a conversation, or the same words before a plain prompt."""

    def changed(prompt: Prompt, _seed: int) -> Prompt:
        if isinstance(prompt, str):
            return f"{role}\n\n{prompt}"
        messages = [one for one in prompt if isinstance(one, ChatMessage)]
        return (ChatMessage("system", role), *(one for one in messages if one.role != "system"))

    return changed


VARIATIONS: Mapping[str, Change] = {
    "paraphrase_before": _in_words(lambda text, _: f"I have a request. {text}"),
    "paraphrase_after": _in_words(lambda text, _: f"{text} Please answer in two or three sentences."),
    "role": _role("You are a librarian who answers the readers of a small town library."),
    "typos": _in_words(_typos),
    "lookalikes": _in_words(lambda text, _: text.translate(_LOOKALIKES)),
    "upper_case": _in_words(lambda text, _: text.upper()),
}
"""Name -> how prompts are changed. `lookalikes` writes digits for letters."""
