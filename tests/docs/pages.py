"""The generated parts of docs/: commands and settings. `python -m tests.docs.pages` writes them, a test checks them fresh."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import typer

from app.cli.main import cli
from app.core.settings import Settings
from benchmarks.field import page as field
from benchmarks.quality import coverage, page, random_directions
from benchmarks.quality.pages import answers, cards, described, distilling, evidence, gates, holding, methods
from benchmarks.quality.transfer import page as transfers

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
BEGIN, END = "<!-- generated: {} -->", "<!-- end: {} -->"
SHARED_OPTIONS = {"--url", "--key", "--help"}


def commands() -> Iterator[tuple[str, Any]]:
    """("vectors list", command) of every command that does something."""

    def walk(command: Any, path: list[str]) -> Iterator[tuple[str, Any]]:
        children = getattr(command, "commands", None)
        if children is None:
            yield " ".join(path), command
        else:
            for name, child in children.items():
                yield from walk(child, [*path, name])

    yield from walk(typer.main.get_command(cli), [])


def command_reference() -> str:
    """Every command with its arguments and options."""
    parts = []
    for path, command in commands():
        arguments = {_shown(one): one.help for one in command.params if one.param_type_name == "argument"}
        needed = [f"{one.opts[0]} {one.name.upper()}" for one in command.params if _is_needed_option(one)]
        usage = " ".join(["steer", path, *arguments, *needed])
        parts.append(f"## steer {path}\n\n{command.help.strip()}\n\n```sh\n{usage}\n```\n")
        options = [o for o in command.params if o.param_type_name == "option" and o.opts[0] not in SHARED_OPTIONS]
        rows = "".join(f"| `{name}` | {words} | |\n" for name, words in arguments.items())
        rows += "".join(f"| `{', '.join(one.opts)}` | {one.help} | {_default(one.default)} |\n" for one in options)
        if rows:
            heads = [name for name, there in (("argument", arguments), ("option", options)) if there]
            parts.append(f"| {', '.join(heads)} | | default |\n|---|---|---|\n{rows}")
    return "\n".join(parts)


def _is_needed_option(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "option" and parameter.required)


def _shown(argument: Any) -> str:
    """An argument as usage shows it: with dots where it may be repeated, in brackets where it may be absent."""
    name = argument.metavar or argument.name.upper() + ("..." if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _default(value: Any) -> str:
    if value is None or value is False or value == "" or callable(value):
        return ""
    return f"`{getattr(value, 'value', value)}`"


TOPICS: Mapping[str, tuple[str, ...]] = {
    "Model and engine": (
        "model", "model_revision", "engine", "vllm_untested", "tensor_parallel_size", "pipeline_parallel_size", "device", "dtype",
        "device_map", "quantization", "weights", "cache_dir", "compiled", "kernels", "adaptive_threads", "dictionaries", "scorer_model",
    ),
    "Network": (
        "host", "port", "allowed_hosts", "openapi", "max_connections", "body_seconds", "keepalive_seconds", "stall_seconds",
    ),
    "Keys": ("api_keys", "api_keys_file"),
    "Database, and how long records are kept": (
        "database", "lease_seconds", "output_days", "audit_days", "job_days", "link_days",
    ),
    "Logs and traces": ("log_level", "client_header", "traces"),
    "Batch and memory": (
        "max_running", "contended_running", "max_waiting", "prefill_tokens", "cache_megabytes", "pretouch_megabytes",
        "share_prefixes", "memory_megabytes", "max_jobs", "max_queued_jobs",
    ),
    "Time limits and stopping": ("request_seconds", "watchdog_seconds", "drain_seconds", "drain_delay_seconds"),
    "Judge": ("judge_base_url", "judge_model", "judge_api_key", "judge_seconds"),
    "Dose": ("dose_bound", "dose_action"),
    "Limits of one request": (),
}  # fmt: skip
"""The settings by topic, in the order of the page. The last topic has all `max_...` that no other has; any other setting has the topic of
the one before it in the class."""


def settings_by_topic() -> Mapping[str, list[str]]:
    """The names of the settings by topic."""
    topics = {name: topic for topic, names in TOPICS.items() for name in names}
    assert topics.keys() <= Settings.model_fields.keys()
    found: dict[str, list[str]] = {topic: [] for topic in TOPICS}
    topic = limits = list(TOPICS)[-1]
    for name in Settings.model_fields:
        topic = topics.get(name, limits if name.startswith("max_") else topic)
        found[topic].append(name)
    return {topic: sorted(names, key=(*TOPICS[topic], *names).index) for topic, names in found.items()}


def settings_table() -> str:
    """Every environment variable with its default, by topic."""
    return "\n".join(f"### {topic}\n\n{_rows_of(names)}" for topic, names in settings_by_topic().items())


def _rows_of(names: list[str]) -> str:
    rows = []
    for name in names:
        field = Settings.model_fields[name]
        value = _from_home(field.default) if isinstance(field.default, Path) else field.default
        shown = "" if value is None or value == () else f"`{str(value).lower() if isinstance(value, bool) else value}`"
        rows.append(f"| `STEERING_{name.upper()}` | {shown} | {field.description} |")
    return "| variable | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _from_home(path: Path) -> str:
    """A path as a reader of any name has it: `~` for a home, be it / as in a container."""
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


PARTS: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "answers.md": {"distinguished": answers.distinguished_table},
    "cli.md": {"commands": command_reference},
    "deploying.md": {"settings": settings_table},
    "distilling.md": {"distilled": distilling.compared_table},
    "concepts.md": {"ranges": page.ranges_table, "cards": cards.cards_table, "described": described.described_tables},
    "dose_response_results.md": {
        "measured": page.measured_on,
        "counts": page.dose_counts,
        "choice": page.choice_table,
        "overview": page.overview,
        "bound": page.bound_table,
        "holding": holding.holding_table,
        "concepts": page.concept_tables,
    },
    "evidence.md": {
        "results": evidence.results_table,
        "other models": evidence.other_models_table,
        "one dose": evidence.one_dose_table,
        "spared": distilling.sparing_table,
        "duration": evidence.duration,
        "runs": evidence.evidence_table,
        "digests": evidence.digests_table,
    },
    "field.md": {
        "runs": field.runs_table,
        "behaviours": field.behaviours_table,
        "peers": field.peers_table,
        "methods": field.methods_table,
        "concepts": field.concepts_table,
        "refusal": field.refusal_table,
        "following": field.following_table,
        "larger behaviours": partial(field.behaviours_table, field.LARGER),
        "larger refusal": partial(field.refusal_table, field.LARGER),
    },
    "mathematics.md": {"random": random_directions.random_table},
    "extraction.md": {"coverage": coverage.coverage_table},
    "report_results.md": {
        "gates": gates.gates_table,
        "failed": gates.failed_table,
        "side_effects": gates.side_effects_table,
        "methods_counts": methods.methods_counts,
        "methods_summary": methods.methods_summary,
        "methods": methods.methods_table,
    },
    "transfer.md": {"counts": transfers.transfer_counts, "transfer": transfers.transfer_table},
    "training.md": {"settings": page.settings_table, "comparison": page.training_table},
}


def refreshed(page: str) -> str:
    """A page with its generated parts as they would be written now."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, write in PARTS[page].items():
        begin, end = BEGIN.format(name), END.format(name)
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        assert pattern.search(text), f"docs/{page} lacks {begin} ... {end}"
        text = _replaced(pattern, f"{begin}\n\n{write()}\n{end}", text)
    return text


def _replaced(pattern: re.Pattern[str], written: str, text: str) -> str:
    """A text with what a pattern finds replaced as it stands: a backslash in it is no escape."""
    return pattern.sub(lambda _: written, text)


if __name__ == "__main__":
    for one in PARTS:
        (DOCS / one).write_text(refreshed(one), encoding="utf-8")
