"""`steer run`: the extractions and evaluations of a file, one after the other. A run that was stopped is continued by the same command."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from rich.text import Text
from typer import BadParameter

from app.cli.commands import Output, command, file_argument, text_of
from app.cli.tables import follow
from app.cli.terminal import shown, stderr
from steering.client import ApiError, Client
from steering.client.connection import Call
from steering.client.routes import Route
from steering.errors import Interrupted, JobNotFound
from steering.schemas.resources import JobAnswer
from steering.strict_json import load_json

STEPS = {
    "extract": Route("POST /v1/vectors/extract", JobAnswer),
    "evaluate": Route("POST /v1/evaluations", JobAnswer),
}
"""Kind of a step -> the route that takes its body."""


@command
def run_study(
    client: Client,
    study: Annotated[
        Path, file_argument("YAML: `steps`, a list of `extract: {...}` and `evaluate: {...}` with bodies of the API.")
    ],
) -> Output:
    """Run the extractions and evaluations of a file. What is done is kept in <file>.results, and done again only after a new vector."""
    folder = study.with_name(f"{study.stem}.results")
    folder.mkdir(exist_ok=True)
    results, stored = {}, list[str]()  # the jobs that stored a vector, which an evaluation after them may use
    for number, (kind, body) in enumerate(steps_of(text_of(study), study.name), start=1):
        subject = str(body.get("vector") or body.get("name") or "step").replace("/", "-")
        name = f"{number:02}-{body.get('kind', kind)}-{subject}"
        results[name], job = _result(client, kind, body, folder / f"{name}.json", stored if kind == "evaluate" else ())
        if kind == "extract" or body.get("save"):
            stored.append(job)
    return results, [shown(f"{name}: {folder / name}.json") for name in results] or [Text("no steps")]


def steps_of(text: str, source: str) -> list[tuple[str, dict[str, Any]]]:
    """Reads a study: (kind, body) of each step. Raises BadParameter naming what does not fit."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadParameter(f"{source} is not YAML: {error}") from error
    try:  # as JSON: what its digest and the request have
        found = load_json(json.dumps(found), source)
    except (TypeError, ValueError) as error:
        raise BadParameter(f"{source} has what JSON has not: {error}; write dates in quotes") from None
    steps = found.get("steps") if isinstance(found, Mapping) and set(found) == {"steps"} else None
    if not isinstance(steps, list):
        raise BadParameter(f"{source}: expected one key, 'steps', with a list")
    for number, step in enumerate(steps, start=1):
        if not (isinstance(step, dict) and len(step) == 1 and set(step) <= set(STEPS)):
            raise BadParameter(f"{source}, step {number}: expected one of {', '.join(STEPS)} with its body")
        if not isinstance(body := next(iter(step.values())), dict):
            raise BadParameter(f"{source}, step {number}: expected the fields of the request, got {body!r}")
    return [next(iter(step.items())) for step in steps]


def _result(client: Client, kind: str, body: dict[str, Any], kept: Path, before: Sequence[str]) -> tuple[Any, str]:
    """Returns the result of a step, and its job: the result that is kept, that of the job that was started for it, or that of a new job.
    before: jobs whose vectors the step may use. After others it is another step."""
    started = kept.with_suffix(".job")
    digest = hashlib.sha256(json.dumps([kind, body, *before], sort_keys=True).encode()).hexdigest()
    if kept.exists() and (found := json.loads(kept.read_text(encoding="utf-8")))["step"] == digest:
        return found["result"], found["job"]
    while True:
        job = _running(client, started, digest)
        if job is None:
            job = client.send(Call(STEPS[kind].arguments(body), STEPS[kind].read, {}))
            started.write_text(json.dumps({"step": digest, "job": job.id}) + "\n", encoding="utf-8")
        stderr.print(shown(f"{kept.stem}: {job.id}"))
        try:
            result = follow(client, job)
            break
        except ApiError as error:
            if error.code != Interrupted.code:  # an interrupted job is started again, and finds the parts that are done
                raise
    found = {"step": digest, "request": {kind: body}, "job": job.id, "result": result}
    partial = kept.with_suffix(".part")  # renamed, so that a file that is there is complete
    partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    partial.replace(kept)
    started.unlink()
    return result, job.id


def _running(client: Client, started: Path, digest: str) -> JobAnswer | None:
    """Returns the job that was started for a step before, unless it is not known any more or did not end well."""
    if not started.exists() or (found := json.loads(started.read_text(encoding="utf-8")))["step"] != digest:
        return None
    try:
        job = client.get_job(found["job"])
    except ApiError as error:
        if error.code == JobNotFound.code:
            return None
        raise
    return None if job.status in {"failed", "cancelled"} else job
