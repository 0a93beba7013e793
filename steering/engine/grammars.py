"""Grammars: compiles what answers must match, by llguidance. Matcher: the tokens with which one answer may go on.

A matcher's state is a function of the tokens that the answer has, so a preempted request keeps it.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from time import thread_time

import numpy as np
import torch
from cachetools import LRUCache
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from steering.errors import InvalidRequest, LimitExceeded, UnsupportedParameter
from steering.model.prompt import ModelTokenizer
from steering.schemas.structured import Grammar, schemas_in
from steering.shapes import Logits
from steering.threads import ThreadPerTaskExecutor
from steering.uploads import uploaded

KEPT = 64
"""Compiled grammars that are kept."""
FIRST_SECONDS, TOKEN_SECONDS = 0.25, 0.002
"""Time of a processor that the masks of one answer may take: at once, and more for each token. Other answers wait for it. Those of
ordinary schemas take 0.01 to 0.4 ms."""
JSON_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n]?[ ]{0,16}", "lenient": False}
"""White space is bounded, since some models write it without end. Not lenient: a keyword that is not enforced is an error."""
COMPILE_SECONDS = 30.0
"""Longest time that a request waits for its grammar. What the bounds allow takes less than a second."""
KINDS = {"json_schema": "the JSON schema", "regex": "the regular expression", "lark": "the Lark grammar"}
WORD = 32
"""Tokens of one number of a mask."""


class Matcher:
    """The tokens with which one answer may go on. eos_ids: allowed wherever the answer may end. seconds: see Grammars."""

    def __init__(self, inner: LLMatcher, eos: int, eos_ids: Iterable[int], seconds: float) -> None:
        self._inner, self._eos, self._eos_ids = inner, eos, frozenset(eos_ids)
        self._seconds = self._left = seconds

    def copy(self) -> "Matcher":
        """Returns a matcher in the same state, for another answer."""
        return Matcher(self._inner.deep_copy(), self._eos, self._eos_ids, self._seconds)

    def first_allowed(self, tokens: Iterable[int]) -> int | None:
        """Returns the place of the first token that may follow; None where none may. One takes microseconds, where a mask takes a tenth
        of a millisecond."""
        began = thread_time()
        first = None
        for place, token in enumerate(tokens):  # plain, since it runs for every row of a step
            if self._inner.validate_tokens([self._eos if token in self._eos_ids else token]):
                first = place
                break
        self._left -= thread_time() - began
        return first

    def fill(self, mask: NDArray[np.uint32]) -> None:
        """Writes which tokens may follow: bit i of number j is that of token 32 j + i. Other threads run meanwhile."""
        began = thread_time()
        self._inner.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._left -= thread_time() - began
        if mask[self._eos // WORD] >> (self._eos % WORD) & 1:
            for token in self._eos_ids:
                mask[token // WORD] |= np.uint32(1 << token % WORD)

    def advance(self, token: int) -> bool:
        """Adds a token of the answer, or one that ends it. Returns whether nothing may follow it. Raises LimitExceeded where the
        grammar is too complex to go on with this answer."""
        began = thread_time()
        taken = self._inner.consume_token(self._eos if token in self._eos_ids else token)
        self._left += TOKEN_SECONDS - (thread_time() - began)
        if not taken or self._left < 0.0:
            reason = self.error or f"its masks take more than {TOKEN_SECONDS * 1000:.0f} ms a token"
            raise LimitExceeded(f"the answer cannot go on under its schema or grammar: {reason}")
        return self._inner.is_stopped()

    @property
    def error(self) -> str:
        """Why it cannot be used any more; empty while it can."""
        return _short(self._inner.get_error())


def masks(matchers: Sequence[Matcher], vocab_size: int) -> NDArray[np.uint32]:
    """Returns which tokens may follow, a row for each matcher, as `Matcher.fill` writes them."""
    words = np.zeros((len(matchers), -(-vocab_size // WORD)), dtype=np.uint32)
    for matcher, row in zip(matchers, words, strict=True):
        matcher.fill(row)
    return words


def allowed(matchers: Sequence[Matcher], logits: Logits) -> Logits:
    """Returns the logits of one row to a matcher (row, vocab), -infinity for tokens that may not follow."""
    words = masks(matchers, logits.shape[1])
    bits = np.unpackbits(words.view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
    tokens = uploaded(torch.from_numpy(bits.view(np.bool_)), logits.device)
    return torch.where(tokens, logits, -torch.inf)


class Grammars:
    """Compiles grammars for one model, one at a time in a thread of its own, and keeps the last ones."""

    def __init__(self, tokenizer: ModelTokenizer, seconds: float = FIRST_SECONDS) -> None:
        """seconds: of work that an answer may take before its first token."""
        self._tokenizer, self._seconds = tokenizer, seconds
        self._compiled: LRUCache[Grammar, Matcher] = LRUCache(KEPT)
        self._executor = ThreadPerTaskExecutor(max_threads=1)

    async def matcher(self, grammar: Grammar) -> Matcher:
        """Returns a matcher for a new answer. Raises InvalidRequest naming the field and what is wrong with it,
        UnsupportedParameter where llguidance does not read the model's tokenizer."""
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiling = asyncio.get_running_loop().run_in_executor(self._executor, self._compile, grammar)
            try:
                compiled = await asyncio.wait_for(compiling, COMPILE_SECONDS)
            except TimeoutError:
                self._executor = ThreadPerTaskExecutor(max_threads=1)  # the next ones do not wait for it
                what = f"{KINDS[grammar.kind]} takes more than {COMPILE_SECONDS:.0f} s to compile, with those before it"
                raise LimitExceeded(what, param=grammar.param) from None
            self._compiled[grammar] = compiled
        return compiled.copy()

    def _compile(self, grammar: Grammar) -> Matcher:
        vocabulary = self.vocabulary
        inner = LLMatcher(vocabulary, _source(grammar), log_level=0, limits=_limits())
        matcher = Matcher(inner, vocabulary.eos_token, self._tokenizer.eos_ids, self._seconds)
        if not matcher.error:  # what a first token cannot match shows with the first mask
            matcher.fill(np.zeros(-(-vocabulary.vocab_size // WORD), dtype=np.uint32))
        if matcher.error:
            raise InvalidRequest(f"{KINDS[grammar.kind]} cannot be used: {matcher.error}", param=grammar.param)
        return matcher

    @cached_property
    def vocabulary(self) -> LLTokenizer:
        """The model's tokens as llguidance reads them. It takes half a second to make, and no other thread runs meanwhile."""
        text, size = self._tokenizer.serialized, self._tokenizer.vocab_size
        try:
            return LLTokenizer(text, size, min(self._tokenizer.eos_ids, default=None), LLTokenizer.json_slices())
        except ValueError as error:
            raise UnsupportedParameter(
                f"llguidance does not read this model's tokenizer: {_short(str(error))}"
            ) from error


def _limits() -> LLParserLimits:
    """Returns bounds of llguidance's work and memory. A step that reaches them takes some milliseconds."""
    return LLParserLimits(
        initial_lexer_fuel=400_000,
        step_lexer_fuel=20_000,
        step_max_items=3_000,
        max_items_in_row=1_500,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def _source(grammar: Grammar) -> str:
    """Returns a grammar in the format of llguidance."""
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "json_schema":
        return json.dumps({"grammars": [{"json_schema": json.loads(grammar.text) | {"x-guidance": JSON_OPTIONS}}]})
    parts, at = [], 0
    for start, end, schema in schemas_in(grammar.text):
        parts += [grammar.text[at:start], json.dumps(schema | {"x-guidance": JSON_OPTIONS})]
        at = end
    return json.dumps({"grammars": [{"lark_grammar": "".join([*parts, grammar.text[at:]])}]})


def _short(message: str) -> str:
    """Returns a message of llguidance without the state that some have at their end."""
    message = message.partition("\n<")[0]
    return message if len(message) <= 300 else f"{message[:300]}…"
