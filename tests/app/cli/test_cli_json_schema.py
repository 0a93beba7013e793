"""`steer generate --json-schema`: against a server over a tiny model, and over an engine that has no grammars."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from tests.app.cli.conftest import Steer
from tests.app.policy.conftest import tiny_engine
from tests.app.running import running

SCHEMA = {
    "type": "object",
    "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["days"],
}


@pytest.fixture
def address(hf_byte_tokenizer: PreTrainedTokenizerFast) -> Iterator[str]:
    with running(tiny_engine(hf_byte_tokenizer)) as found:
        yield found


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    file = tmp_path / "days.json"
    file.write_text(json.dumps(SCHEMA | {"additionalProperties": False}))
    return file


def test_the_answer_matches_the_schema_of_a_file(steer: Steer, schema: Path) -> None:
    output, _ = steer("generate", "how long?", "--json-schema", str(schema))
    assert 1 <= json.loads(output)["days"] <= 9


def test_a_file_that_is_no_schema_is_refused(steer: Steer, schema: Path) -> None:
    schema.write_text("{")
    assert "days.json is not valid JSON" in steer("generate", "x", "--json-schema", str(schema), code=1)[1]
    schema.write_text('{"type": "word"}')
    assert "the JSON schema cannot be used" in steer("generate", "x", "--json-schema", str(schema), code=1)[1]


def test_an_engine_without_grammars_is_named(capsys: pytest.CaptureFixture[str], schema: Path) -> None:
    with running() as scripted:
        _, error = Steer(scripted, capsys)("generate", "x", "--json-schema", str(schema), code=1)
    assert "cannot hold answers" in error
