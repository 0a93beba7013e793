"""`steer demo`: the main job once, over HTTP, against a server of its own: make a vector, steer with it, compare."""

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

import typer
from rich.status import Status

from app.cli.tables import card_lines, comparison_table
from app.cli.terminal import console, shown
from steering.client.client import ApiError, Client

PROMPTS = ("What was the train journey like?", "How is your new apartment?")
READY_SECONDS = 600.0
"""The first start converts the embedded model; a larger one takes its time to load."""


def demo(
    model: Annotated[str | None, typer.Option(help="Another model than the embedded one.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ...")] = None,
) -> None:
    """Start a server, make the sentiment vector, steer both ways with it, and show the answers side by side."""
    folder = Path(tempfile.mkdtemp(prefix="steering-demo-"))
    console.print("Starting a server of its own; the first time the model is converted once, which takes a minute.\n")
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
    console.print("[bold]2[/] POST /v1/vectors/extract made a concept vector from contrasting examples")
    for line in card_lines(vector):
        console.print("  ", line, sep="")
    console.print(
        "\n[bold]3[/] POST /v1/compare: one prompt, one batch, three strengths; the likeliest token every time"
    )
    strength = round(vector.recommended.strength[1], 1)
    for prompt in PROMPTS:
        with console.status("generating"):
            answer = client.compare(
                messages=[{"role": "user", "content": prompt}],
                intervention={"vector": vector.id},
                strengths=[-strength, 0.0, strength],
                readout=["sentiment"],
                max_tokens=48,
                temperature=0.0,
            )
        console.print()
        console.print(comparison_table(answer, prompt))
    console.print(
        "[dim]sentiment: mean readout of the written tokens, in natural scales; KL in nats from the unsteered model[/]"
    )
    _profile(client, vector.id, strength)


def _profile(client: Client, vector: str, strength: float) -> None:
    client.put_profile("cheerful", [{"vector": vector, "strength": strength}], description="always sees the good")
    console.print("\n[bold]4[/] PUT /v1/profiles/cheerful keeps the strength on the server; a request names it")
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
    console.print("\nTo go on: [bold]make serve[/], then http://127.0.0.1:8000 and docs/quickstart.md")


@contextmanager
def _server(folder: Path, model: str | None, device: str | None) -> Iterator[Client]:
    """A client of a server of our own on a free loopback port, with a database that is thrown away; ended afterwards."""
    port, log = _free_port(), folder / "server.log"
    options = {
        "--model": model,
        "--device": device,
        "--port": str(port),
        "--database": f"sqlite:///{folder}/demo.sqlite3",
    }
    command = [sys.executable, "-m", "app.cli.main", "serve", "--host", "127.0.0.1", "--log-level", "info"]
    command += [part for name, value in options.items() if value is not None for part in (name, value)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603 - this very program
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            _wait_until_ready(client, process, log)
            yield client
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(client: Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Shows what the server is doing until it can work. Raises ApiError with the end of its log when it gives up."""
    until = time.monotonic() + READY_SECONDS
    with console.status("starting the server") as status:
        while time.monotonic() < until:
            if process.poll() is not None:
                raise ApiError(f"the server ended by itself:\n{_end_of(log)}", code="server_ended")
            with suppress(ApiError):
                client.health()
                return
            _tell(status, log)
            time.sleep(0.2)
    raise ApiError(f"the server was not ready after {READY_SECONDS:g} s:\n{_end_of(log)}", code="not_ready")


def _tell(status: Status, log: Path) -> None:
    """The newest step that the server's log tells."""
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
