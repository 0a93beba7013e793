"""Grammars: compiles what answers must match, by llguidance. Matcher: the tokens with which one answer may go on.

A matcher's state is a function of the tokens that the answer has, so a preempted request keeps it.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from steering.errors import InvalidRequest, LimitExceeded, UnsupportedParameter
from steering.model.prompt import ModelTokenizer
from steering.schemas.structured import Grammar
from steering.threads import ThreadPerTaskExecutor

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

KEPT = 64
"""Compiled grammars that are kept."""
JSON_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n]?[ ]{0,32}", "lenient": False}
"""Bounded white space, since some models write it without end. Not lenient: an unsupported keyword is an error."""
WORD = 32
"""Tokens of one number of a mask."""


class Matcher:
    """The tokens with which one answer may go on. eos_ids: allowed wherever the answer may end."""

    def __init__(self, inner: "LLMatcher", eos: int, eos_ids: Iterable[int]) -> None:
        self._inner, self._eos, self._others = inner, eos, [token for token in eos_ids if token != eos]

    def copy(self) -> "Matcher":
        """Returns a matcher in the same state."""
        return Matcher(self._inner.deep_copy(), self._eos, self._others)

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Writes which tokens may follow: bit i of number j is that of token 32 j + i. Other threads run meanwhile."""
        self._inner.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        words = mask.view(np.uint32)
        if words[self._eos // WORD] >> (self._eos % WORD) & 1:
            for token in self._others:
                words[token // WORD] |= np.uint32(1 << token % WORD)

    def advance(self, token: int) -> bool:
        """Adds a token of the answer. Returns whether nothing may follow it. Raises LimitExceeded where the grammar is too
        complex to go on with this answer."""
        self._inner.consume_token(token)
        if self._inner.is_error():
            raise LimitExceeded(f"the answer cannot go on under its grammar: {_short(self._inner.get_error())}")
        return self._inner.is_stopped()


def masks(matchers: Sequence[Matcher], vocab_size: int) -> NDArray[np.bool_]:
    """Returns which tokens may follow, (matcher, vocab)."""
    words = np.zeros((len(matchers), -(-vocab_size // WORD)), dtype=np.int32)
    for matcher, row in zip(matchers, words, strict=True):
        matcher.fill(row)
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
    return bits.view(np.bool_)


class Grammars:
    """Compiles grammars for one model, one at a time in a thread of its own, and keeps the last ones."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiled: LRUCache[Grammar, Matcher] = LRUCache(KEPT)
        self._executor = ThreadPerTaskExecutor(max_threads=1)

    async def matcher(self, grammar: Grammar) -> Matcher:
        """Returns a matcher of a new answer. Raises InvalidRequest naming the field and what is wrong with it,
        UnsupportedParameter where llguidance does not read the model's tokenizer."""
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = await asyncio.get_running_loop().run_in_executor(self._executor, self._compile, grammar)
            self._compiled[grammar] = compiled
        return compiled.copy()

    def _compile(self, grammar: Grammar) -> Matcher:
        from llguidance import LLMatcher  # noqa: PLC0415 - most servers never need it

        tokenizer = self._vocabulary
        inner = LLMatcher(tokenizer, _source(grammar), log_level=0, limits=_limits())
        if inner.is_error():
            what = {"json_schema": "the JSON schema", "regex": "the regular expression", "lark": "the Lark grammar"}
            reason = _short(inner.get_error())
            raise InvalidRequest(f"{what[grammar.kind]} cannot be used: {reason}", param=grammar.param)
        return Matcher(inner, tokenizer.eos_token, self._tokenizer.eos_ids)

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        from llguidance import LLTokenizer  # noqa: PLC0415 - see `_compile`

        eos = min(self._tokenizer.eos_ids, default=None)
        try:
            return LLTokenizer(self._tokenizer.serialized, n_vocab=self._tokenizer.vocab_size, eos_token=eos)
        except ValueError as error:
            reason = f"llguidance does not read the model's tokenizer: {_short(str(error))}"
            raise UnsupportedParameter(f"answers of this model cannot be held to a grammar: {reason}") from error


def _limits() -> "LLParserLimits":
    """Returns bounds of the work and memory of one grammar."""
    from llguidance import LLParserLimits  # noqa: PLC0415 - see Grammars

    return LLParserLimits(
        initial_lexer_fuel=400_000, max_grammar_size=100_000, max_lexer_states=50_000, precompute_large_lexemes=False
    )


def _source(grammar: Grammar) -> str:
    """Returns a grammar as llguidance reads it."""
    if grammar.kind == "json_schema":
        return json.dumps({"grammars": [{"json_schema": json.loads(grammar.text) | {"x-guidance": JSON_OPTIONS}}]})
    if grammar.kind == "lark":
        return json.dumps({"grammars": [{"lark_grammar": grammar.text}]})
    from llguidance import LLMatcher  # noqa: PLC0415 - see Grammars

    return LLMatcher.grammar_from_regex(grammar.text)


def _short(message: str) -> str:
    return message if len(message) <= 300 else f"{message[:300]}…"
