"""`steer serve`: runs the server. Options take precedence over the environment."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from app.cli.output.terminal import shown, stderr
from app.process_settings import prepare_for_torch
from app.settings import Settings
from steering.model.embedded import EMBEDDED_MODEL, embedded_gguf


def serve(  # noqa: PLR0913, PLR0917 - one option a setting
    model: Annotated[
        str | None, typer.Option(help="The embedded model, a Hugging Face id, a folder, a GGUF path.")
    ] = None,
    model_revision: Annotated[str | None, typer.Option(help="Pinned revision of a Hugging Face id.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; other than loopback needs a key.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    engine: Annotated[str | None, typer.Option(help="transformers, or vllm where vLLM is installed.")] = None,
    vllm_untested: Annotated[
        bool | None,
        typer.Option("--vllm-untested", help="Start with a version of vLLM that the engine was not tested with."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = None,
    device_map: Annotated[str | None, typer.Option(help="auto spreads a model over every device.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    database: Annotated[str | None, typer.Option(help="sqlite:///file, postgresql://... or memory://")] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Folder of converted models.")] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="A key that clients need; repeatable. STEERING_API_KEYS hides it from the process list."),
    ] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help="A name accepted in Host; repeatable.")] = None,
    max_running: Annotated[int | None, typer.Option(help="Sequences in one batch.")] = None,
    max_waiting: Annotated[int | None, typer.Option(help="Requests that may wait for the batch.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    other: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other setting; repeatable.")
    ] = None,
) -> None:
    """Serve a model. Every setting is also an environment variable: --port 8001 is STEERING_PORT=8001."""
    options: dict[str, Any] = {
        "model": model, "model_revision": model_revision, "host": host, "port": port, "engine": engine,
        "vllm_untested": vllm_untested, "device": device,
        "device_map": device_map, "dtype": dtype, "database": database, "cache_dir": cache_dir,
        "max_running": max_running, "max_waiting": max_waiting, "log_level": log_level,
        "api_keys": ",".join(api_key) if api_key else None,
        "allowed_hosts": ",".join(allowed_host) if allowed_host else None,
    }  # fmt: skip
    prepare_for_torch()
    given = {name: value for name, value in options.items() if value is not None}
    settings = settings_of(given | _assignments(other or []))
    if settings.model == EMBEDDED_MODEL:
        embedded_gguf()  # raises with the command that installs it, before torch is loaded
    from app.server import serve as run_server  # noqa: PLC0415 - imports torch, after the settings above

    raise typer.Exit(run_server(settings))


def _assignments(texts: list[str]) -> dict[str, str]:
    """Parses NAME=VALUE of --set. Raises BadParameter for an unknown setting."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().lower().removeprefix("steering_").replace("-", "_")
        if not equals or name not in Settings.model_fields:
            known = ", ".join(sorted(Settings.model_fields))
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE of a setting; known: {known}", param_hint="--set")
        found[name] = value
    return found


def settings_of(options: dict[str, Any]) -> Settings:
    """Returns settings from options and environment. Reports what is invalid and exits with 2."""
    try:
        return Settings(**options)
    except ValidationError as error:
        for finding in error.errors():
            where = ".".join(map(str, finding["loc"])) or "settings"
            stderr.print(shown(f"{where}: {finding['msg'].removeprefix('Value error, ')}", "red"))
        raise typer.Exit(2) from None
