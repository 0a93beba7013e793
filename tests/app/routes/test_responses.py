"""What a stream says of a token that was not measured is the same as of any other, only written faster."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.services.responses import token_data, token_piece
from steering.engine.api import TokenEvent
from steering.schemas.generation import TokenPiece
from tests.scripted_tokenizer import ScriptedTokenizer

TOKENIZER = ScriptedTokenizer()
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(0, 2**31 - 1)


@given(TEXTS, NUMBERS, NUMBERS, st.integers(0, 100))
def test_a_plain_token_is_written_as_its_piece_would_be(text: str, token: int, index: int, choice: int) -> None:
    event = TokenEvent(index, token, text)
    written = token_data(event, choice, TOKENIZER, None)
    assert isinstance(written, bytes)
    assert written.isascii()
    assert written.splitlines() == [written]
    piece = token_piece(event, choice, TOKENIZER)
    assert TokenPiece.model_validate_json(written) == piece
    assert TokenPiece.model_validate_json(written).model_fields_set == (
        TokenPiece.model_validate_json(piece.model_dump_json(exclude_none=True)).model_fields_set
    )


@pytest.mark.parametrize(
    ("event", "flags"),
    [
        (TokenEvent(3, -1, "last"), None),
        (TokenEvent(3, 7, "x", logprob=-0.5, top_logprobs=((7, -0.5),)), None),
        (TokenEvent(3, 7, "x", readout={"warmth": 0.5}), None),
        (TokenEvent(3, 7, "x"), [0]),
    ],
)
def test_a_token_of_which_more_is_said_is_its_piece(event: TokenEvent, flags: list[int] | None) -> None:
    assert token_data(event, 0, TOKENIZER, flags) == token_piece(event, 0, TOKENIZER, flags=flags)
