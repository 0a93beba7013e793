"""The command `steer`: its subcommands, and errors reported in one line."""

import sys
from collections.abc import Sequence

import typer

from app.cli.evaluation import evaluate, report, separation
from app.cli.generation import batch, compare, generate, replay, sweep
from app.cli.governance import audit, keys, monitors, policy
from app.cli.library import concepts, default, jobs, links, profiles
from app.cli.reading import activations, card, clusters, draw_map, explain, lens, readout, score
from app.cli.serve import database, demo, serve
from app.cli.terminal import shown, stderr
from app.cli.vectors import dictionaries, extract, transfer, vectors
from steering.client import ApiError
from steering.errors import SteeringError

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Extract concept vectors, and steer a language model with them during generation.",
)
for command in (
    serve, demo, extract, transfer, evaluate, report, generate, compare, sweep, replay, readout, lens, card, audit,
    activations, score, explain, clusters, batch, monitors,
):  # fmt: skip
    cli.command()(command)
cli.command("map")(draw_map)
cli.command("test")(separation)
for name, group in {
    "vectors": vectors, "concepts": concepts, "profiles": profiles, "default": default, "jobs": jobs, "links": links,
    "db": database, "keys": keys, "policy": policy, "dictionaries": dictionaries,
}.items():  # fmt: skip
    cli.add_typer(group, name=name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0, 1 after a reported error, 2 for wrong usage, 130 after Ctrl-C."""
    try:
        cli(args=None if arguments is None else list(arguments))
    except (ApiError, SteeringError, OSError) as error:
        stderr.print(shown(f"error: {error}", "red"), soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
