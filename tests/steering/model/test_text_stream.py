"""TextStream: whole characters only, and all of them, for byte-level and for word-mark tokenizers."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from steering.model.prompt import BROKEN, MAX_HELD, ModelTokenizer, TextDecoder, TextStream
from tests.byte_tokenizer import build_byte_tokenizer
from tests.families import EOS
from tests.narrowing import present

BYTES = build_byte_tokenizer().backend_tokenizer


def word_mark_tokenizer() -> Tokenizer:
    """In the manner of SentencePiece: words open with a mark, unknown characters are bytes."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b", "ab"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    backend = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)}, merges=merges, unk_token="<unk>", byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    return backend


WORD_MARKS = word_mark_tokenizer()
TOKENIZERS = {"bytes": BYTES, "word marks": WORD_MARKS}
MODEL_TOKENIZERS = {
    name: ModelTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), vocab_size=backend.get_vocab_size())
    for name, backend in TOKENIZERS.items()
}


def streamed(backend: Tokenizer, ids: list[int], context: tuple[int, ...] = ()) -> list[str]:
    stream = TextStream(TextDecoder(backend), context)
    return [*(stream.step(token_id) for token_id in ids), stream.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(alphabet=st.sampled_from("ab é漢🙂👩‍👩‍👧\n"), max_size=12))
def test_pieces_join_to_the_text_and_none_is_broken(name: str, text: str) -> None:
    backend = TOKENIZERS[name]
    ids = backend.encode(text, add_special_tokens=False).ids
    pieces = streamed(backend, ids)
    assert "".join(pieces) == backend.decode(ids)
    assert not any(BROKEN in piece for piece in pieces)
    assert pieces[-1] == ""


@given(ids=st.lists(st.integers(0, 261), max_size=24))
def test_any_bytes_join_to_what_decoding_gives(ids: list[int]) -> None:
    assert "".join(streamed(BYTES, ids)) == BYTES.decode(ids, skip_special_tokens=True)


@given(ids=st.lists(st.integers(0, 262), max_size=24))
def test_bytes_that_are_no_text_do_not_stop_the_words_after_them(ids: list[int]) -> None:
    """A run of byte tokens that is no text turns into broken characters as a whole, which takes back what came before
    within the run; a stream cannot take anything back, but it goes on."""
    word = present(WORD_MARKS.token_to_id("▁a"))
    assert "".join(streamed(WORD_MARKS, [*ids, word, word])).endswith("a a")


@given(ids=st.lists(st.integers(0, 261), max_size=3))
def test_a_decoder_knows_how_long_a_text_is(ids: list[int]) -> None:
    decoder = TextDecoder(BYTES)
    assert decoder.length(ids) == decoder.length(ids) == len(BYTES.decode(ids, skip_special_tokens=True))


def test_streams_share_a_decoder() -> None:
    decoder, text = TextDecoder(BYTES), "é🙂a".encode()
    streams = TextStream(decoder), TextStream(decoder, tuple(b"ab"))
    pieces = [[stream.step(byte) for stream in streams] for byte in text]
    assert ["".join(written) for written in zip(*pieces, strict=True)] == ["é🙂a", "é🙂a"]


def test_a_long_run_that_is_no_text_is_not_kept_back_for_ever() -> None:
    pieces = streamed(BYTES, [0x80] * 200)
    assert "".join(pieces) == BROKEN * 200
    assert max(len(piece) for piece in pieces) <= 64


def test_a_character_comes_with_its_last_byte() -> None:
    assert streamed(BYTES, list("é🙂".encode())) == ["", "é", "", "", "", "🙂", ""]


def test_an_unfinished_character_comes_at_the_end() -> None:
    assert streamed(BYTES, [*b"a", 0xF0, 0x9F]) == ["a", "", "", BROKEN]


def test_control_tokens_have_no_text() -> None:
    assert streamed(BYTES, [*b"a", EOS, *b"b"]) == ["a", "", "b", ""]


def test_a_long_run_of_control_tokens_is_not_decoded_again_and_again() -> None:
    longest = 0

    class Counting(TextDecoder):
        def text(self, token_ids: Sequence[int]) -> str:
            nonlocal longest
            longest = max(longest, len(token_ids))
            return super().text(token_ids)

    stream = TextStream(Counting(BYTES))
    pieces = [stream.step(token) for token in (*b"a", *[EOS] * 1000, *"é".encode())]
    assert "".join(pieces) == "aé"
    assert longest <= 2 * MAX_HELD


def test_after_a_prompt_the_first_word_keeps_its_space() -> None:
    context = tuple(WORD_MARKS.encode("a b", add_special_tokens=False).ids)
    ids = WORD_MARKS.encode("a", add_special_tokens=False).ids
    assert "".join(streamed(WORD_MARKS, ids)) == "a"
    assert "".join(streamed(WORD_MARKS, ids, context)) == " a"


def test_a_prompt_that_ends_within_a_character_is_not_repeated() -> None:
    assert "".join(streamed(BYTES, [0xA9, *b"x"], (*b"a", 0xC3))).endswith("x")


def test_before_a_separator_every_character_ends_and_none_goes_on_behind_it() -> None:
    first, second, third = "€".encode()
    stream = TextStream(TextDecoder(BYTES, [EOS]))
    assert [stream.step(one) for one in (*b"a", first, EOS, second, third, *b"b")] == [
        "a",
        "",
        BROKEN,
        "",
        "",
        BROKEN * 2 + "b",
    ]
    joined = TextStream(TextDecoder(BYTES))
    assert "".join(joined.step(one) for one in (*b"a", first, EOS, second, third)) == "a€"
    words = TextStream(TextDecoder(WORD_MARKS, [1]), tuple(WORD_MARKS.encode("a b", add_special_tokens=False).ids))
    word = present(WORD_MARKS.token_to_id("▁a"))
    assert [words.step(one) for one in (word, 1, word)] == [" a", "", " a"]


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(alphabet=st.sampled_from("ab é漢🙂\n"), max_size=12))
def test_the_bytes_of_tokens_join_to_the_text(name: str, text: str) -> None:
    tokenizer = MODEL_TOKENIZERS[name]
    ids = TOKENIZERS[name].encode(text, add_special_tokens=False).ids
    raw = b"".join(map(tokenizer.token_bytes, (EOS, *ids) if name == "bytes" else ids))
    assert raw.decode() == text or raw.decode() == f" {text}"  # a word mark adds a space
