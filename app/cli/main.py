"""The command `steer`: its subcommands, and errors reported in one line."""

import sys
from collections.abc import Sequence

import typer

from app.cli.database import database
from app.cli.demo import demo
from app.cli.generation import compare, generate, sweep
from app.cli.output.terminal import shown, stderr
from app.cli.reading import evaluate, lens, readout
from app.cli.serve import serve
from app.cli.vectors import extract, vectors
from steering.client import ApiError
from steering.errors import SteeringError

cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make concept vectors, and steer a language model with them while it generates.",
)
for command in (serve, demo, extract, evaluate, generate, compare, sweep, readout, lens):
    cli.command()(command)
cli.add_typer(vectors, name="vectors")
cli.add_typer(database, name="db")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits: 0, 1 after a reported error, 2 for wrong usage, 130 after Ctrl-C."""
    try:
        cli(args=None if arguments is None else list(arguments))
    except (ApiError, SteeringError, OSError) as error:
        stderr.print(shown(f"error: {error}", "red"))
        sys.exit(1)


if __name__ == "__main__":
    main()
