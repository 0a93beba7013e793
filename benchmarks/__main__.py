"""`python -m benchmarks`: measures everything in one go, prints the tables, keeps the raw figures."""

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
from benchmarks.model import subject_for
from benchmarks.profile import FULL, QUICK
from benchmarks.report import markdown, restored, show
from benchmarks.suites import PARTS

RESULTS = Path(__file__).parent / "results"


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="tiny counts: shows that everything runs, measures nothing"
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="NAME", help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, help="where the raw figures go; by default benchmarks/results/")
    parser.add_argument(
        "--device",
        default="cpu",
        choices=("cpu", "cuda"),
        help="cpu: the embedded model; cuda: 2 B parameters with random weights",
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="print the tables of a kept run and measure nothing"
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device that torch can use")
    return options


def main(arguments: list[str]) -> int:
    """0, or 1 when our own engine failed."""
    options = parsed(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no side is left standing
    console = Console(width=None if sys.stdout.isatty() else 200)
    effort = QUICK if options.quick else FULL
    if options.markdown:
        kept = json.loads(options.markdown.read_text())
        print(markdown(restored(kept, Bench(QUICK if kept["quick"] else FULL, {}, print))))
        return 0
    machine = describe(options.device)
    if machine["load"] > BUSY and not options.quick:
        console.print(f"The machine is busy (load {machine['load']:.1f}): every figure will be too low.", style="red")
    subject = subject_for(options.device)
    bench = Bench(
        effort, starters(subject, effort), lambda line: console.print(f"- {line}", markup=False), subject.options()
    )
    try:
        for name in options.only or PARTS:
            PARTS[name](bench)
    finally:
        bench.close()
    show(bench, machine, console)
    if options.quick:
        console.print("--quick: these figures show that everything runs, and mean nothing.")
    output = options.output or (None if options.quick else RESULTS / file_name(machine))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"machine": machine, "quick": options.quick, **bench.as_json()}, indent=1) + "\n")
        console.print(f"raw figures: {output}", markup=False)
    return int(ENGINE in bench.absent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
