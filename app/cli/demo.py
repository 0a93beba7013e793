"""`steer demo`: starts a temporary server, extracts a vector, steers with it and compares the answers."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from rich.status import Status
from typer import Option

from app.cli.output.tables import card_lines, comparison_table
from app.cli.output.terminal import console, shown
from steering.client import NO_RETRIES, ApiError, Client
from steering.schemas.vectors import RecommendedAnswer

PROMPTS = ("What was the train journey like?", "How is your new apartment?")
READY_SECONDS = 600.0
"""The first start converts the embedded model; larger models take minutes to load."""


def demo(
    model: Annotated[str | None, Option(help="Another model than the embedded one.")] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda, ...")] = None,
) -> None:
    """Start a server, extract the sentiment vector, steer in both directions, and show the answers."""
    folder = Path(tempfile.mkdtemp(prefix="steering-demo-"))
    console.print("Starting a temporary server. The first start converts the model, which takes a minute.\n")
    try:
        with _server(folder, model, device) as client:
            _run(client)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(client: Client) -> None:
    info = client.capabilities().model
    console.print(f"[bold]1[/] A server is up: {info.name}, {info.layers} layers, {info.dtype} on {info.device}\n")
    with console.status("reading contrasting texts"):
        vector = client.extract_vector("sentiment", concept="sentiment", description="pleased against displeased")
    console.print("[bold]2[/] POST /v1/vectors/extract extracted a concept vector from contrasting examples")
    for line in card_lines(vector):
        console.print("  ", line, sep="")
    console.print("\n[bold]3[/] POST /v1/compare: one prompt, one batch, three strengths, greedy decoding")
    negative, positive = _strengths(vector.recommended)
    for prompt in PROMPTS:
        with console.status("generating"):
            answer = client.compare(
                messages=[{"role": "user", "content": prompt}],
                intervention={"vector": vector.id},
                strengths=[negative, 0.0, positive],
                readout=["sentiment"],
                max_tokens=48,
                temperature=0.0,
            )
        console.print()
        console.print(comparison_table(answer, prompt))
    _profile(client, vector.id, positive)


def _strengths(recommended: RecommendedAnswer) -> tuple[float, float]:
    """A strength below and one above zero: the middle of what was measured, or of what is to be tried."""
    above = recommended.strength or recommended.strengths_to_try or (1.0, 1.0)
    below = recommended.negative or (-above[0], -above[1])
    return round(sum(below) / 2, 2), round(sum(above) / 2, 2)


def _profile(client: Client, vector: str, strength: float) -> None:
    client.put_profile("cheerful", [{"vector": vector, "strength": strength}], description="always sees the good")
    console.print("\n[bold]4[/] PUT /v1/profiles/cheerful stores the strength on the server; a request names it")
    with console.status("generating"):
        answer = client.generate(
            messages=[{"role": "user", "content": PROMPTS[1]}],
            steering={"profile": "cheerful"},
            max_tokens=48,
            temperature=0.0,
        )
    console.print("  ", shown(answer.choices[0].text.strip(), "green"), sep="")
    for one in answer.steering.applied:
        doses = ", ".join(f"{dose:.2f} of the residual at layer {layer}" for layer, dose in one.relative_dose.items())
        console.print(f"  applied: {one.operation} {one.vector} at {one.strength:+g}, {doses}")
    console.print("\nNext: [bold]make serve[/], then http://127.0.0.1:8000 and docs/quickstart.md")


@contextmanager
def _server(folder: Path, model: str | None, device: str | None) -> Iterator[Client]:
    """Runs a server on a free loopback port with a temporary database, and yields a client of it."""
    port, log = _free_port(), folder / "server.log"
    command = [sys.executable, "-P", "-m", "app.cli.main", "serve", "--host", "127.0.0.1", "--log-level", "info"]
    command += ["--port", str(port), "--database", f"sqlite:///{folder}/demo.sqlite3"]
    for name, value in (("--model", model), ("--device", device)):
        command += [] if value is None else [name, value]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603 - this program
    try:
        with Client(f"http://127.0.0.1:{port}", retries=NO_RETRIES) as waiting:
            _wait_until_ready(waiting, process, log)
        with Client(f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(client: Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Shows the progress of the start until the server is ready. Raises ApiError with the end of its log."""
    deadline = time.monotonic() + READY_SECONDS
    with console.status("starting the server") as status:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ApiError(f"the server exited:\n{_end_of(log)}", code="server_ended")
            with suppress(ApiError):
                client.health()
                return
            _show_step(status, log)
            time.sleep(0.2)
    raise ApiError(f"the server was not ready after {READY_SECONDS:g} s:\n{_end_of(log)}", code="not_ready")


def _show_step(status: Status, log: Path) -> None:
    """Shows the newest loading step in the server's log."""
    for line in reversed(log.read_text(errors="replace").splitlines()):
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and record.get("event") == "loading":
                status.update(shown(f"{record.get('step')}"))
                return


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-10:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
