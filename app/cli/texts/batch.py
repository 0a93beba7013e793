"""`steer batch`: answers many prompts from a file into a file."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.output.job_progress import follow
from app.cli.output.terminal import LOCAL, Key, Url, client_of, console, shown, stderr


def batch(
    requests: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="JSON lines: the fields of POST /v1/generate, and an id if wanted."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: a line per request, in the same order.")],
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Answer many prompts in the background. Ctrl-C cancels; what was finished is written all the same."""
    with client_of(url, key) as client:
        job = client.start_batch(requests.read_bytes())
        try:
            result = follow(client, job)
        finally:
            lines = [one.model_dump_json(exclude_none=True) for one in client.job_output(job.id)]
            out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    console.print(shown(f"wrote {out}: {result['succeeded']} answers"))
    if result["failed"]:
        stderr.print(shown(f"{result['failed']} requests failed; their lines have an error", "yellow"))
