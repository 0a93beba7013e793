"""`python -m benchmarks`: runs all suites, prints the tables and saves the raw results."""

import argparse
import json
import signal
import sys
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.bench import Bench
from benchmarks.contenders.registry import ENGINE, starters
from benchmarks.machine import BUSY, describe, file_name
from benchmarks.model import model_for
from benchmarks.profile import FULL, QUICK
from benchmarks.report import markdown, restored, show
from benchmarks.suites import SUITES

RESULTS = Path(__file__).parent / "results"


def parsed(arguments: list[str]) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small counts: checks that everything runs, measures nothing"
    )
    parser.add_argument("--only", nargs="+", choices=list(SUITES), metavar="NAME", help=f"suites: {', '.join(SUITES)}")
    parser.add_argument("--output", type=Path, help="file of the raw results; default: in benchmarks/results/")
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="cpu: the embedded model; cuda: 2 B parameters with random weights",
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="print the tables of a saved run and measure nothing"
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device that torch can use")
    return options


def main(arguments: list[str]) -> int:
    """Returns 0, or 1 when our engine failed."""
    options = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every contender is stopped
    console = Console(width=None if sys.stdout.isatty() else 200)
    profile = QUICK if options.quick else FULL
    if options.markdown:
        saved = json.loads(options.markdown.read_text())
        print(markdown(restored(saved, Bench(QUICK if saved["quick"] else FULL, {}, print))))
        return 0
    machine = describe(options.device)
    if machine["load"] > BUSY and not options.quick:
        console.print(f"The machine is busy (load {machine['load']:.1f}): every result will be too low.", style="red")
    model = model_for(options.device)
    bench = Bench(
        profile, starters(model, profile), lambda line: console.print(f"- {line}", markup=False), model.options()
    )
    try:
        for name in options.only or SUITES:
            SUITES[name](bench)
    finally:
        bench.close()
    show(bench, machine, console)
    if options.quick:
        console.print("--quick: these numbers only show that everything runs.")
    output = options.output or (None if options.quick else RESULTS / file_name(machine))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"machine": machine, "quick": options.quick, **bench.as_json()}, indent=1) + "\n")
        console.print(f"raw results: {output}", markup=False)
    return int(ENGINE in bench.absent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
