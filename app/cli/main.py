"""The command `steer`: its subcommands, and errors reported in one line."""

import sys
from collections.abc import Sequence

import typer

from app.cli import bake, evaluation, library, mcp_server, model, screen, serve, study, vectors
from app.cli.terminal import shown, stderr
from steering.client import ApiError
from steering.errors import SteeringError

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Extract concept vectors, and steer a language model with them during generation.",
)
for command in (
    serve.serve, serve.demo, vectors.extract, vectors.distil, vectors.transfer, bake.bake, evaluation.evaluate, evaluation.report,
    evaluation.choices, model.generate, model.compare, model.sweep, model.replay, model.readout, model.lens, model.card, library.audit,
    model.activations, model.score, model.explain, model.clusters, model.batch, library.monitors,
    screen.screen,
):  # fmt: skip
    cli.command()(command)
cli.command("map")(model.draw_map)
cli.command("test")(evaluation.separation)
cli.command("run")(study.run_study)
cli.command("mcp")(mcp_server.serve_mcp)
for name, group in {
    "vectors": vectors.vectors, "concepts": library.concepts, "profiles": library.profiles,
    "default": library.default, "jobs": library.jobs, "links": library.links, "db": serve.database,
    "keys": library.keys, "policy": library.policy, "dictionaries": vectors.dictionaries,
    "packs": library.packs,
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
