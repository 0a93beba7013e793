"""Reads a Dockerfile: its stages, their steps, and the configuration that steps leave. BuildKit's own parser does the parsing."""

import posixpath
import shlex
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template
from typing import Any

import dockerfile

EXECUTED = frozenset({"RUN", "COPY", "WORKDIR"})
CONFIGURING = frozenset(
    {"ARG", "ENV", "USER", "VOLUME", "CMD", "ENTRYPOINT", "HEALTHCHECK", "STOPSIGNAL", "EXPOSE", "LABEL"}
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction. flags: (name, value) without dashes. exec_form: written as a JSON list, which no shell reads."""

    line: int
    instruction: str
    flags: tuple[tuple[str, str], ...]
    values: tuple[str, ...]
    exec_form: bool

    def flag(self, name: str) -> str | None:
        """Returns the value of a flag, or None."""
        return dict(self.flags).get(name)

    @property
    def command(self) -> tuple[str, ...]:
        """What RUN, CMD, ENTRYPOINT or HEALTHCHECK executes."""
        values = self.values[1:] if self.instruction == "HEALTHCHECK" else self.values
        return values if self.exec_form else ("/bin/sh", "-c", *values)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. base: an earlier stage, or the name of an image."""

    name: str
    base: str
    steps: tuple[Step, ...]

    @property
    def sources(self) -> set[str]:
        """The stages and images that it is made from."""
        return {self.base} | {source for step in self.steps if (source := step.flag("from"))}


@dataclass(frozen=True, slots=True)
class Config:
    """What the steps so far say about how an image runs. user: names or numbers, `user:group`."""

    environment: Mapping[str, str] = field(default_factory=lambda: {"PATH": PATH, "LANG": "C.UTF-8"})
    arguments: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    health: tuple[str, ...] = ()
    stop_signal: str = "SIGTERM"
    volumes: tuple[str, ...] = ()

    def expanded(self, text: str) -> str:
        """Returns a word with its variables replaced and its quotes removed. Unset variables are empty."""
        return " ".join(shlex.split(_expanded(text, {**self.arguments, **self.environment})))

    def after(self, step: Step, given: Mapping[str, str]) -> "Config":
        """Returns the configuration after a step. given: build arguments, which replace the defaults of ARG."""
        changes: dict[str, Any] = {}
        match step.instruction:
            case "ARG":
                changes["arguments"] = {**self.arguments, **_argument(step, given)}
            case "ENV":
                names, values = step.values[::2], step.values[1::2]
                added = dict(zip(names, map(self.expanded, values), strict=True))
                changes["environment"] = {**self.environment, **added}
            case "WORKDIR":
                changes["folder"] = posixpath.join(self.folder, self.expanded(step.values[0]))
            case "USER":
                user, _, group = self.expanded(step.values[0]).partition(":")
                changes["user"] = f"{user}:{group or user}"
            case "VOLUME":
                changes["volumes"] = (*self.volumes, *map(self.expanded, step.values))
            case "CMD" | "ENTRYPOINT" | "HEALTHCHECK":
                field_name = {"CMD": "command", "ENTRYPOINT": "entrypoint", "HEALTHCHECK": "health"}
                changes[field_name[step.instruction]] = step.command
            case "STOPSIGNAL":
                changes["stop_signal"] = step.values[0]
        return replace(self, **changes)


def read_stages(path: Path, given: Mapping[str, str]) -> dict[str, Stage]:
    """Returns the stages of a Dockerfile by name, in order. Raises ValueError for an instruction that is not supported."""
    defaults: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    name = ""
    for command in dockerfile.parse_file(str(path)):
        step = _step(command)
        if step.instruction == "FROM":
            base = _expanded(step.values[0], defaults)
            name = step.values[2] if len(step.values) == 3 else str(len(stages))
            stages[name] = Stage(name, base, ())
        elif not stages:
            defaults |= _argument(step, given)
        else:
            stages[name] = replace(stages[name], steps=(*stages[name].steps, step))
    return stages


def stages_of(stages: Mapping[str, Stage], target: str) -> list[Stage]:
    """Returns the target and every stage it is made from, in the order of the file. Raises ValueError without the target."""
    if target not in stages:
        raise ValueError(f"no stage is named {target!r}; there are {', '.join(stages)}")
    needed = {target}
    for name in reversed(list(stages)):
        if name in needed:
            needed |= stages[name].sources
    return [stage for name, stage in stages.items() if name in needed]


def _step(command: Any) -> Step:
    instruction = command.cmd.upper()
    if instruction not in EXECUTED | CONFIGURING | {"FROM"} or "<<" in command.original.split("\n", 1)[0]:
        raise ValueError(f"line {command.start_line}: this form of {instruction} is not supported")
    flags = [flag.removeprefix("--").partition("=") for flag in command.flags]
    named = tuple((name, value) for name, _, value in flags)
    return Step(command.start_line, instruction, named, tuple(command.value), command.json)


def _argument(step: Step, given: Mapping[str, str]) -> dict[str, str]:
    name, equals, default = step.values[0].partition("=")
    return {name: given.get(name, default)} if equals or name in given else {}


def _expanded(text: str, variables: Mapping[str, str]) -> str:
    return Template(text).substitute(defaultdict(str, variables))
