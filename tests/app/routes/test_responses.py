"""Token events have the form that TokenPiece documents."""

import json

import pytest

from app.services.generation.responses import token_piece
from steering.engine.api import TokenEvent
from steering.schemas.generation import TokenPiece
from tests.scripted_model import ScriptedTokenizer


@pytest.mark.parametrize(
    "event",
    [
        TokenEvent(3, 7, " x\u2028"),
        TokenEvent(3, -1, "last"),
        TokenEvent(3, 7, "x", logprob=-0.5, top_logprobs=((7, -0.5), (8, float("-inf")))),
        TokenEvent(3, 7, "x", readout={"warmth": 0.5, "cold": float("nan")}),
    ],
)
@pytest.mark.parametrize(("arm", "flags"), [(None, None), ("base", [0])])
def test_a_token_event_is_a_token_piece(event: TokenEvent, arm: str | None, flags: list[int] | None) -> None:
    piece = token_piece(event, 0, ScriptedTokenizer(), arm, flags)
    read = TokenPiece.model_validate_json(json.dumps(piece, allow_nan=False))
    assert read.model_fields_set == set(piece)
    assert (read.text, read.index, read.id) == (event.text, 3, None if event.token_id < 0 else 7)
    assert json.loads(read.model_dump_json(exclude_unset=True)) == piece
