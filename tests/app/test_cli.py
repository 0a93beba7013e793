"""The command `steer` as a person runs it: against a real server, with files, and with what must be refused."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from app.calls.errors import ApiError
from app.cli import main
from app.client import Client
from app.commands import control_vector
from app.commands.serving import settings_of
from app.commands.tables import applied_lines, comparison_table
from app.commands.terminal import layers_of, safe, steering_of
from app.schemas.comparison import ArmAnswer, CompareAnswer
from app.schemas.generation import Choice
from app.schemas.steering import AppliedSteering
from steering.errors import InvalidRequest
from tests.app.conftest import D_MODEL
from tests.app.running import running

ESCAPES = "\x1b[2J\x1b]0;title\x07 \u202eabc\u2066 \x9b31m\r\x08"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as found:
        with Client(found) as client:
            client.register_vector("calm", {"0": [1.0] * D_MODEL, "1": [0.5] * D_MODEL, "2": [3.0] * D_MODEL})
        yield found


class Steer:
    """Runs a command against the server and keeps what it printed."""

    def __init__(self, address: str, capsys: pytest.CaptureFixture[str]) -> None:
        self._address, self._capsys = address, capsys

    def __call__(self, *arguments: str, code: int = 0, local: bool = False) -> tuple[str, str]:
        """(standard output, standard error). local: a command that asks no server."""
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *([] if local else ["--url", self._address])])
        found = self._capsys.readouterr()
        assert (ended.value.code or 0) == code, found.err
        return found.out, found.err


@pytest.fixture
def steer(address: str, capsys: pytest.CaptureFixture[str]) -> Steer:
    return Steer(address, capsys)


# ---- text of strangers ---------------------------------------------------------------------------------------------


@given(st.text())
def test_no_text_reaches_the_terminal_with_a_control_code_in_it(text: str) -> None:
    kept = safe(text)
    for character in kept:
        assert character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cs"}
        assert unicodedata.bidirectional(character) not in {
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        }


def test_ordinary_text_of_any_script_is_kept() -> None:
    text = "naïve 日本語 עברית 👩‍🔬\n\ttab"
    assert safe(text) == text


def test_what_a_model_wrote_is_shown_as_text_and_never_as_codes_or_markup() -> None:
    steering = AppliedSteering(fingerprint="", applied=[], warnings=[f"beware {ESCAPES}[red]"])
    choice = Choice(index=0, text=f"one [bold]two[/bold] {ESCAPES}", finish_reason="stop")
    answer = CompareAnswer(
        id="c",
        model="m",
        seed=1,
        baseline="b",
        arms=[ArmAnswer(name=f"b{ESCAPES}", choices=[choice], steering=steering)],
    )
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(comparison_table(answer, f"prompt {ESCAPES}"))
        for line in applied_lines(steering):
            console.print(line)
    printed = capture.get()
    assert "[bold]two[/bold]" in printed
    assert "beware" in printed
    assert not any(unicodedata.category(character) == "Cc" and character != "\n" for character in printed)
    assert "\u202e" not in printed


# ---- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("recommended", "recommended"),
        ("all", "all"),
        ("12,13", [12, 13]),
        ("-1", [-1]),
        ("10:16", {"from": 10, "to": 16}),
    ],
)
def test_layers_as_a_person_writes_them(text: str, layers: Any) -> None:
    assert layers_of(text) == layers


def test_steering_is_the_sum_of_its_options() -> None:
    assert steering_of([], "recommended", None, None) is None
    first = {"vector": "a", "strength": -0.5, "layers": [3]}
    assert steering_of(["a=-0.5"], "3", None, '{"vector": "b"}') == [first, {"vector": "b"}]
    assert steering_of(["a"], "all", "kept", None) == {
        "profile": "kept",
        "interventions": [{"vector": "a", "strength": 1.0, "layers": "all"}],
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "x", "--steer", "a=much"),
        ("generate", "x", "--steering", "{"),
        ("generate", "x", "--steer", "a=1", "--layers", "some"),
        ("compare", "x"),
        ("sweep", "a", "x", "--strengths", "1,two"),
        ("extract", "a"),
        ("extract", "a", "--concept", "b", "--trait", "c", "--opposite", "d"),
        ("extract", "a", "--trait", "c"),
        ("vectors", "export", "calm", "--format", "pickle"),
    ],
)
def test_a_wrong_use_is_told_and_ends_with_2(steer: Steer, arguments: tuple[str, ...]) -> None:
    _, complaint = steer(*arguments, code=2)
    assert complaint


def test_options_of_serve_come_before_the_environment_and_are_checked(steer: Steer) -> None:
    assert settings_of({"port": 8123}).port == 8123
    _, complaint = steer("serve", "--host", "0.0.0.0", code=2, local=True)
    assert "STEERING_API_KEYS" in complaint
    _, complaint = steer("serve", "--set", "max_arms=none", code=2, local=True)
    assert "max_arms" in complaint
    _, complaint = steer("serve", "--set", "no_such=1", code=2, local=True)
    assert "max_arms" in complaint, "what exists is told"


# ---- answers -------------------------------------------------------------------------------------------------------


def test_generate_prints_the_answer_and_says_apart_what_was_done(steer: Steer, address: str) -> None:
    said, told = steer("generate", "hello", "--steer", "calm=0.5", "--seed", "4", "--max-tokens", "6")
    with Client(address) as client:
        asked = {"steering": [{"vector": "calm", "strength": 0.5}], "seed": 4, "max_tokens": 6}
        answer = client.generate(messages=[{"role": "user", "content": "hello"}], **asked)  # type: ignore[arg-type]
    assert said == answer.choices[0].text + "\n"
    assert "seed 4" in told
    assert "add calm@1 at +0.5 scale" in told


def test_generate_gives_the_whole_answer_as_json(steer: Steer) -> None:
    said, _ = steer("generate", "hello", "--raw", "--seed", "4", "--max-tokens", "2", "--json")
    assert json.loads(said)["seed"] == 4


def test_compare_and_sweep_show_every_arm_with_its_figures(steer: Steer) -> None:
    said, told = steer("compare", "hello", "--steer", "calm=2", "--n", "2", "--seed", "1", "--max-tokens", "5")
    assert all(word in said for word in ("base", "steered", "calm", "KL", "perplexity", "token 0"))
    assert "add calm@1 at +2 scale" in told
    said, _ = steer("sweep", "calm", "hello", "--strengths", "-1,0,0.5", "--seed", "1", "--max-tokens", "5")
    assert all(arm in said for arm in ("-1", "base", "+0.5"))
    said, _ = steer("sweep", "calm", "hi", "--operation", "rotate", "--degrees", "10", "--max-tokens", "2", "--json")
    assert {one["operation"] for arm in json.loads(said)["arms"] for one in arm["steering"]["applied"]} == {"rotate"}


def test_an_error_of_the_server_is_told_in_a_line_and_ends_with_1(steer: Steer) -> None:
    said, told = steer("generate", "hello", "--steer", "nobody=1", code=1)
    assert said == ""
    assert "vector_not_found" in told
    assert "Traceback" not in told


def test_a_server_that_is_not_there_is_told(steer: Steer) -> None:
    _, told = steer("vectors", "list", "--url", "http://127.0.0.1:9", code=1, local=True)
    assert "connection_failed" in told


# ---- vectors -------------------------------------------------------------------------------------------------------


def test_extract_from_a_file_of_pairs_shows_the_card(steer: Steer, tmp_path: Path) -> None:
    lines = [
        {"positive": f"good {i}", "negative": f"bad {i}", "prompt": "well?", "topic": f"t{i % 4}"} for i in range(8)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    said, _ = steer("extract", "mood", "--pairs", str(file), "--layers", "1,2", "--position", "-1")
    assert "mood@1" in said
    assert "held-out AUROC" in said
    assert "too few pairs" in said
    said, _ = steer("vectors", "show", "mood")
    assert "random AUROC" in said
    said, _ = steer("vectors", "list", "--search", "mood")
    assert "mood@1" in said
    steer("vectors", "delete", "mood")
    _, told = steer("vectors", "show", "mood", code=1)
    assert "vector_not_found" in told


def test_a_bad_line_of_a_file_of_pairs_is_named(steer: Steer, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"positive": "a", "negative": "b"}\n{"positive": "a"}\n')
    _, told = steer("extract", "mood", "--pairs", str(file), code=1)
    assert "line 2" in told


def test_a_job_that_fails_is_told(steer: Steer, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"positive": "good", "negative": "bad"}\n')
    _, told = steer("extract", "mood", "--pairs", str(file), "--method", "probe", code=1)
    assert "needs at least 4" in told


def test_a_vector_goes_out_and_comes_in_unchanged_in_every_format(steer: Steer, address: str, tmp_path: Path) -> None:
    with Client(address) as client:
        before = client.export_vector_words("calm")
        for form in ("safetensors", "gguf"):
            file = tmp_path / f"calm.{form}"
            steer("vectors", "export", "calm", "-o", str(file), "--format", form, "--layers", "all")
            steer("vectors", "import", str(file), "--name", f"from-{form}")
            after = client.export_vector_words(f"from-{form}")
            for layer in after.layers:
                assert after.directions[str(layer)] == pytest.approx(before.directions[str(layer)], abs=1e-7)
                assert after.scale[str(layer)] == pytest.approx(before.scale[str(layer)], rel=1e-6)
            client.delete_vector(f"from-{form}")
    file = tmp_path / "calm.json"
    steer("vectors", "export", "calm@1", "-o", str(file), "--format", "json")
    assert json.loads(file.read_text())["id"] == "calm@1"


# ---- control vectors of llama.cpp ----------------------------------------------------------------------------------


def test_a_control_vector_is_what_llama_cpp_reads_and_its_tensors_are_ours(tmp_path: Path) -> None:
    file = tmp_path / "v.gguf"
    unit = [0.6, 0.8, 0.0, 0.0]
    assert control_vector.write(file, {0: unit, 3: unit, 12: unit}, {0: 1.0, 3: 2.0, 12: 0.5}, "llama") == (3, 12)
    reader = GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 2
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors) == ["direction.3", "direction.12"], "layer L is llama.cpp's block L; it has no place for 0"
    for name, scale in (("direction.3", 2.0), ("direction.12", 0.5)):
        assert tensors[name].tensor_type == GGMLQuantizationType.F32
        assert tensors[name].data.tolist() == (np.float32(scale) * np.asarray(unit, np.float32)).tolist()


def test_layer_0_alone_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="layer 0"):
        control_vector.write(tmp_path / "v.gguf", {0: [1.0]}, {0: 1.0}, "m")


def test_a_control_vector_needs_a_name_when_it_comes_in(steer: Steer, tmp_path: Path) -> None:
    file = tmp_path / "v.gguf"
    control_vector.write(file, {1: [1.0] * D_MODEL}, {1: 1.0}, "m")
    steer("vectors", "import", str(file), code=2)


def written(path: Path, tensors: dict[str, Any]) -> Path:
    writer = GGUFWriter(path, "controlvector")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


VALUES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"direction.0": VALUES}, "direction.0"),
        ({"blk.1.attn_q": VALUES}, "blk.1.attn_q"),
        ({"direction.1": VALUES.astype(np.float16)}, "float32"),
        ({"direction.1": np.ones((2, 2), np.float32)}, "float32 vector"),
        ({"direction.1": np.full(4, np.nan, np.float32)}, "NaN"),
        ({"direction.1": VALUES, "direction.2": np.ones(5, np.float32)}, "length"),
        ({}, "no direction"),
    ],
)
def test_a_file_that_is_no_control_vector_is_refused_with_the_reason(
    tmp_path: Path, tensors: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        control_vector.read(written(tmp_path / "v.gguf", tensors))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"PK\x03\x04" * 20, b"GGUF" + b"\xff" * 60])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "v.gguf"
    file.write_bytes(content)
    with pytest.raises(InvalidRequest):
        control_vector.read(file)


def test_a_file_on_which_the_parser_never_returns_is_given_up(tmp_path: Path) -> None:
    """One key whose value is an array of 2**60 bytes, in a file of 49 bytes."""
    file = tmp_path / "v.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 0, 1 << 60))
    assert file.stat().st_size == 49
    with pytest.raises(InvalidRequest, match="longer than 3 s"):
        control_vector.read(file, seconds=3.0)


# ---- the database --------------------------------------------------------------------------------------------------


def test_the_schema_of_a_database_is_looked_at_and_brought_up_to_date(steer: Steer, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'steering.sqlite3'}"
    said, _ = steer("db", "current", "--database", url, local=True)
    assert said.startswith("database: empty; this version: ")
    newest = said.strip().rpartition(" ")[2]
    assert not (tmp_path / "steering.sqlite3").exists(), "looking makes nothing"
    said, _ = steer("db", "upgrade", "--database", url, local=True)
    assert said.strip() == f"database: {newest}"
    said, _ = steer("db", "current", "--database", url, local=True)
    assert said.strip() == f"database: {newest}; this version: {newest}"


def test_a_database_that_cannot_be_is_refused(steer: Steer) -> None:
    _, told = steer("db", "current", "--database", "oracle://x", code=1, local=True)
    assert "error" in told


# ---- whole processes -----------------------------------------------------------------------------------------------


def test_serve_serves_a_model_and_ends_with_0_when_told_to(tiny_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "serve", "--model", str(tiny_folder), "--port", str(port)]
    command += ["--database", "memory://", "--device", "cpu", "--dtype", "float32", "--set", "max_arms=3"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            until = time.monotonic() + 120
            while not _ready(client):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.1)
            assert client.capabilities().limits["max_arms"] == 3
            assert client.generate("abc", max_tokens=3, seed=1).usage.completion_tokens <= 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def _ready(client: Client) -> bool:
    try:
        client.health()
    except ApiError:
        return False
    return True


@pytest.mark.embedded
@pytest.mark.timeout(900)
def test_demo_shows_sentiment_moving_both_ways_and_leaves_nothing_behind(model_cache: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "STEERING_CACHE_DIR": str(model_cache), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "demo"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "sentiment@1" in done.stdout
    assert "cheerful" in done.stdout
    readouts = {}
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        if len(cells) > 2 and cells[0] in ("-0.75", "base", "+0.75"):
            readouts.setdefault(cells[0], []).append(float(cells[2]))
    assert len(readouts["base"]) == 2
    for down, base, up in zip(readouts["-0.75"], readouts["base"], readouts["+0.75"], strict=True):
        assert down < base < up
    assert list(tmp_path.iterdir()) == []
