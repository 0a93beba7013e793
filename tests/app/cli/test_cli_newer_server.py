"""A job of a newer server, whose result has another shape: the command says so, and prints the result as it was sent."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.app.cli.conftest import Steer

RESULT: dict[str, Any] = {"made": "by a newer server", "points": {"0.5": 1}}
JOB = {"id": "job-1", "kind": "evaluation", "status": "succeeded", "progress": {}, "error": None, "result": RESULT}
LINES = b'{"index":0,"made":"by a newer server"}\n'


class Newer(BaseHTTPRequestHandler):
    """Every request begins a job that has ended."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer(json.dumps({**JOB, "created_at": "", "updated_at": ""}).encode())

    def do_GET(self) -> None:
        self._answer(LINES)

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Newer) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "mood"),
        ("report", "mood"),
        ("extract", "mood", "--concept", "sentiment"),
        ("distil", "mood", "Answer as a pirate."),
        ("transfer", "mood", "--concept", "sentiment"),
    ],
)
def test_a_result_of_another_shape_is_printed_as_it_is(steer: Steer, arguments: tuple[str, ...]) -> None:
    out, error = steer(*arguments, code=1)
    assert json.loads(out) == RESULT
    assert "job job-1 (evaluation) succeeded, but this version of steer does not know the shape" in error
    assert "Field required" in error or "valid" in error
    assert "Traceback" not in error


def test_lines_of_another_shape_are_written_as_they_are(steer: Steer, tmp_path: Path) -> None:
    asked, answered = tmp_path / "asked.jsonl", tmp_path / "answered.jsonl"
    asked.write_text('{"prompt": "a"}\n', encoding="utf-8")
    out, error = steer("batch", str(asked), "--out", str(answered), code=1)
    assert (json.loads(out), answered.read_bytes()) == (RESULT, LINES)
    assert "succeeded: Field required" in error
