"""The command `steer` as a person runs it: against a real server, with files, and with what must be refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.terminal import settings_of
from app.core.gguf_format import write_control_vector
from steering.client import Client
from tests.app.cli.conftest import Steer
from tests.app.conftest import D_MODEL
from tests.app.running import running


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as found:
        with Client(found) as client:
            client.register_vector("calm", {"0": [1.0] * D_MODEL, "1": [0.5] * D_MODEL, "2": [3.0] * D_MODEL})
        yield found


# ---- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "x", "--steer", "a=much"),
        ("generate", "x", "--steering", "{"),
        ("generate", "x", "--hold", "a"),
        ("generate", "x", "--steer", "a=1", "--layers", "some"),
        ("compare", "x"),
        ("compare", "x", "--steering", "[]"),
        ("generate", "x", "--raw", "--system", "y"),
        ("sweep", "a", "x", "--strengths", "1,two"),
        ("generate", "x", "--layers", "all"),
        ("generate", "x", "--hold", "calm=1", "--share-dose"),
        ("lens", "x", "--steer-layers", "all"),
        ("profiles", "set", "a", "--layers", "1", "--steering", '{"vector": "calm"}'),
        ("dictionaries", "search", "d", "a text", "--vector", "calm"),
        ("evaluate", "calm", "--kind", "calibration", "--items", "items.jsonl"),
        ("extract", "a"),
        ("extract", "a", "--concept", "b", "--trait", "c", "--opposite", "d"),
        ("extract", "a", "--trait", "c"),
        ("vectors", "export", "calm", "--format", "pickle"),
        ("vectors", "export", "calm", "--layers", "all"),
        ("vectors", "delete", "calm@"),
        ("vectors", "export", "calm", "--format", "gguf", "--layers", "1:2"),
    ],
)
def test_wrong_usage_is_reported_and_exits_with_2(steer: Steer, arguments: tuple[str, ...]) -> None:
    _, error = steer(*arguments, code=2)
    assert error


def test_options_of_serve_come_before_the_environment_and_are_checked(steer: Steer) -> None:
    assert settings_of({"port": 8123}).port == 8123
    _, error = steer("serve", "--host", "0.0.0.0", code=2, local=True)
    assert "STEERING_API_KEYS" in error
    _, error = steer("serve", "--set", "max_arms=none", code=2, local=True)
    assert "max_arms" in error
    _, error = steer("serve", "--api-key", "", "--host", "nowhere", code=2, local=True)
    assert "--api-key" in error, "as of a variable that is not set: the server would be open"
    _, error = steer("serve", "--set", "no_such=1", code=2, local=True)
    assert "max_arms" in error, "what exists is messages"


# ---- answers ----------------------------------------------------------------------------------------------------


def test_generate_prints_the_answer_and_says_apart_what_was_done(steer: Steer, address: str) -> None:
    output, messages = steer("generate", "hello", "--steer", "calm=0.5", "--seed", "4", "--max-tokens", "6")
    with Client(address) as client:
        asked = [{"role": "user", "content": "hello"}]
        answer = client.generate(messages=asked, steering=[{"vector": "calm", "strength": 0.5}], seed=4, max_tokens=6)
    assert output == answer.choices[0].text + "\n"
    assert "seed 4" in messages
    assert "add calm@1 at +0.5 scale" in messages


def test_generate_holds_a_score(steer: Steer) -> None:
    _, messages = steer("generate", "hello", "--hold", "calm=0.4", "--max-tokens", "6")
    assert "hold calm@1 at +0.4 (strength up to 1)" in messages
    assert "no class means" in messages


def test_generate_gives_the_whole_answer_as_json(steer: Steer) -> None:
    output, _ = steer("generate", "hello", "--raw", "--seed", "4", "--max-tokens", "2", "--json")
    assert json.loads(output)["seed"] == 4


def test_compare_and_sweep_show_every_arm_with_its_figures(steer: Steer) -> None:
    output, messages = steer("compare", "hello", "--steer", "calm=2", "--n", "2", "--seed", "1", "--max-tokens", "5")
    assert all(word in output for word in ("base", "steered", "calm", "KL", "perplexity", "token 0"))
    assert "add calm@1 at +2 scale" in messages
    _, messages = steer("compare", "hello", "--steer", "calm=2", "--layers", "0,2", "--share-dose", "--max-tokens", "3")
    assert "shared out as" in messages
    output, _ = steer("sweep", "calm", "hello", "--strengths", "-1,0,0.5", "--seed", "1", "--max-tokens", "5")
    assert all(arm in output for arm in ("-1", "base", "+0.5"))
    output, messages = steer("sweep", "calm", "hi", "--operation", "rotate", "--degrees", "10", "--max-tokens", "2")
    assert "+0.5" in output
    for degrees in ("-10", "-5", "5", "10"):
        assert f"rotate calm@1 by {degrees} degrees: relative dose" in messages


@pytest.mark.parametrize(
    "options", [("clamp", "--low", "0.5", "--high", "0.5"), ("replace", "--to", "calm"), ("ablate",)]
)
def test_a_sweep_takes_what_its_operation_needs(steer: Steer, options: tuple[str, ...]) -> None:
    arguments = ("sweep", "calm", "hi", "--strengths", "0,0.5", "--max-tokens", "2", "--operation")
    assert f"{options[0]} calm@1 at +0.5" in steer(*arguments, *options)[1]


def test_an_error_of_the_server_is_reported_in_a_line_and_exits_with_1(steer: Steer) -> None:
    output, messages = steer("generate", "hello", "--steer", "nobody=1", code=1)
    assert output == ""
    assert "vector_not_found" in messages
    assert "Traceback" not in messages


def test_a_server_that_does_not_run_is_reported(steer: Steer) -> None:
    _, messages = steer("vectors", "list", "--url", "http://127.0.0.1:9", code=1, local=True)
    assert "connection_failed" in messages


# ---- vectors ----------------------------------------------------------------------------------------------------


def test_extract_from_a_file_of_pairs_shows_the_card(steer: Steer, tmp_path: Path) -> None:
    lines = [
        {"positive": f"good {i}", "negative": f"bad {i}", "prompt": "well?", "topic": f"t{i % 4}"} for i in range(8)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    output, _ = steer("extract", "mood", "--pairs", str(file), "--layers", "1,2", "--position", "-1")
    assert "mood@1" in output
    assert "held-out AUROC" in output
    assert "too few pairs" in output
    output, _ = steer("vectors", "show", "mood")
    assert "random AUROC" in output
    output, _ = steer("vectors", "list", "--search", "mood")
    assert "mood@1" in output
    steer("vectors", "delete", "mood")
    _, messages = steer("vectors", "show", "mood", code=1)
    assert "vector_not_found" in messages


def test_one_version_of_a_vector_is_deleted(steer: Steer, address: str) -> None:
    with Client(address) as client:
        for _ in range(3):
            client.register_vector("versions", {"1": [1.0] * D_MODEL})
        assert steer("vectors", "delete", "versions@2")[0] == "deleted versions@2\n"
        assert [one.version for one in client.list_versions("versions").data] == [3, 1]
    assert "vector_not_found" in steer("vectors", "delete", "versions@2", code=1)[1]
    assert steer("vectors", "delete", "versions")[0] == "deleted versions\n"
    assert "vector_not_found" in steer("vectors", "show", "versions", code=1)[1]


def test_a_bad_line_of_a_file_of_pairs_is_named(steer: Steer, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"positive": "a", "negative": "b"}\n{"positive": "a"}\n')
    _, messages = steer("extract", "mood", "--pairs", str(file), code=1)
    assert "line 2" in messages


def test_a_trained_vector_takes_its_settings(steer: Steer, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"positive": f"good {i}", "negative": f"bad {i}"}) for i in range(6)))
    trained = ("extract", "mood", "--pairs", str(file), "--method", "trained", "--steps", "3", "--kl-coefficient", "0")
    steer(*trained)
    output, _ = steer("vectors", "show", "mood", "--json")
    training = json.loads(output)["provenance"]["training"]
    assert (training["steps"], training["kl_coefficient"]) == (3, 0.0)
    _, messages = steer("extract", "mood", "--pairs", str(file), "--steps", "3", code=1)
    assert "training" in messages


def test_a_job_that_fails_is_reported(steer: Steer, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"positive": "good", "negative": "bad"}\n')
    _, messages = steer("extract", "mood", "--pairs", str(file), "--method", "probe", code=1)
    assert "needs at least 4" in messages


def test_a_vector_goes_out_and_comes_in_unchanged_in_every_format(steer: Steer, address: str, tmp_path: Path) -> None:
    with Client(address) as client:
        before = client.export_vector_json("calm")
        for form, chosen in (("safetensors", ()), ("gguf", ("--layers", "all"))):
            file = tmp_path / f"calm.{form}"
            assert not steer("vectors", "export", "calm", "-o", str(file), "--format", form, *chosen)[0]
            steer("vectors", "import", str(file), "--name", f"from-{form}")
            after = client.export_vector_json(f"from-{form}")
            for layer in after.layers:
                assert after.directions[str(layer)] == pytest.approx(before.directions[str(layer)], abs=1e-7)
                assert after.scale[str(layer)] == pytest.approx(before.scale[str(layer)], rel=1e-6)
            client.delete_vector(f"from-{form}")
    file = tmp_path / "calm.json"
    steer("vectors", "export", "calm@1", "-o", str(file), "--format", "json")
    assert json.loads(file.read_text())["id"] == "calm@1"


def test_a_control_vector_omits_layer_0_where_it_was_not_named(steer: Steer, tmp_path: Path) -> None:
    export = ("vectors", "export", "calm", "--format", "gguf", "-o", str(tmp_path / "calm.gguf"), "--layers")
    assert "layer 0 was omitted" in steer(*export, "all")[1]
    assert "layer 0" not in steer(*export, "1,2")[1]


def test_a_control_vector_needs_a_name_when_it_comes_in(steer: Steer, tmp_path: Path) -> None:
    file = tmp_path / "v.gguf"
    file.write_bytes(write_control_vector({1: [1.0] * D_MODEL}, {1: 1.0}, "m"))
    steer("vectors", "import", str(file), code=2)


# ---- the database ------------------------------------------------------------------------------------------------


def test_the_schema_of_a_database_is_looked_at_and_brought_up_to_date(steer: Steer, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'steering.sqlite3'}"
    output, _ = steer("db", "current", "--database", url, local=True)
    assert output.startswith("database: empty; this version: ")
    newest = output.strip().rpartition(" ")[2]
    assert not (tmp_path / "steering.sqlite3").exists(), "looking makes nothing"
    output, _ = steer("db", "upgrade", "--database", url, local=True)
    assert output.strip() == f"database: {newest}"
    output, _ = steer("db", "current", "--database", url, local=True)
    assert output.strip() == f"database: {newest}; this version: {newest}"


def test_a_database_that_cannot_be_is_refused(steer: Steer) -> None:
    _, messages = steer("db", "current", "--database", "oracle://x", code=1, local=True)
    assert "error" in messages
