"""Executes the Dockerfile without a container engine, in clean Debian roots, and starts what comes out.

Usage: `python -m tools.image [target]` as root, or `make image-check`; the first run downloads Debian, Node and torch. The
steps of every stage that the target needs run in a root from debootstrap. The image's command is then started as its user,
with a read-only root, no capabilities and a network of its own. Its health check must pass, `/` must serve the playground, a
request must be steered, and after the stop signal the exit code must be 0. Roots and caches are deleted at the end.

docs/deploying.md lists what differs from a real build.
"""

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from tools.image.build import Build
from tools.image.container import Container
from tools.image.roots import check_machine
from tools.image.steps import Config, read_stages, stages_of

REPOSITORY = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 180.0
STOP_SECONDS = 40.0
"""The start period of the health check, and the stop_grace_period of docker-compose.yml."""


def main() -> None:
    """Reads the command line, builds, starts, checks and deletes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", nargs="?", default="cpu", help="a stage of the Dockerfile")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--mirror", help="where debootstrap finds Debian; absent, its own default")
    parser.add_argument("--cache", type=Path, help="a folder that keeps what RUN steps cache, for the next run")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="replaces a variable of the image"
    )
    options = parser.parse_args()
    check_machine()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the roots are deleted
    given = pairs(options.build_arg)
    stages = stages_of(read_stages(REPOSITORY / "Dockerfile", given), options.target)
    work = Path(tempfile.mkdtemp(prefix="steering-image-"))
    try:
        started = time.monotonic()
        root, config = Build(work, options.cache or work / "caches", options.mirror, given).run(stages, REPOSITORY)
        size = subprocess.run(["/usr/bin/du", "-sm", str(root)], capture_output=True, text=True, check=True).stdout
        print(f"{time.monotonic() - started:7.1f} s  in all; the root has {size.split()[0]} MB", flush=True)
        environment = {**config.environment, **pairs(options.env)}
        check(root, replace(config, environment=environment), work / "log")
    finally:
        delete(work)


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """Parses options of the form NAME=VALUE."""
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def check(root: Path, config: Config, log: Path) -> None:
    """Starts the image and checks what a user would. Raises SystemExit with the first thing that does not hold."""
    with Container(root, config, log) as container:
        print(f"healthy after {container.wait_until_healthy(START_SECONDS):.1f} s", flush=True)
        if container.run_outside("tools.image.probe", STEERING_API_KEY=container.key):
            raise SystemExit("the requests failed")
        started = time.monotonic()
        code = container.stop(STOP_SECONDS)
        print(f"exit code {code} {time.monotonic() - started:.1f} s after {config.stop_signal}")
        if code:
            raise SystemExit("the image's command did not end by itself")


def delete(work: Path) -> None:
    """Deletes the roots. Raises SystemExit, and deletes nothing, when something is mounted in them."""
    mounted = [one.mountpoint for one in psutil.disk_partitions(all=True) if Path(one.mountpoint).is_relative_to(work)]
    if mounted:
        raise SystemExit(f"still mounted: {', '.join(mounted)}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
