"""Starts the root of an image as a container engine starts the image, and asks what runs in it."""

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tools.image.roots import as_user, in_namespaces, virtual_mounts
from tools.image.steps import Config

CONFINED = ("--bounding-set=-all", "--no-new-privs")
"""What docker-compose.yml asks for: no capabilities, no new privileges. The root is read-only, /tmp is a tmpfs."""


class Container:
    """A started image: process 1 of its own namespaces, with a network of its own that reaches nothing.

    log: a file for its output, shown when something fails.
    """

    def __init__(self, root: Path, config: Config, log: Path) -> None:
        self._config, self._log = config, log
        self.key = secrets.token_urlsafe()
        self._environment = {**config.environment, "STEERING_API_KEYS": self.key}
        volumes = [["mount", "--bind", f"{root}{volume}", f"{root}{volume}"] for volume in config.volumes]
        prepare = [
            ["ip", "link", "set", "lo", "up"],
            ["mount", "--bind", str(root), str(root)],
            *volumes,
            *virtual_mounts(root),
            ["mount", "-t", "tmpfs", "tmpfs", f"{root}/tmp"],  # noqa: S108 - in the root of the image
            ["mount", "-o", "remount,bind,ro", str(root)],
        ]
        command = as_user([*config.entrypoint, *config.command], config, *CONFINED)
        with log.open("w") as output:
            self._process = subprocess.Popen(
                in_namespaces(root, prepare, command, "--net"), env=self._environment, stdout=output, stderr=output
            )
        while self._process.poll() is None and not psutil.Process(self._process.pid).children():
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()  # and with it, by --kill-child, all that runs in the namespaces
        self._process.wait()
        if error is not None:
            print(self._log.read_text(errors="replace")[-6000:], flush=True)

    @property
    def _first(self) -> int:
        """The process id, outside of the namespaces, of the image's command."""
        children = psutil.Process(self._process.pid).children()
        if not children:
            raise SystemExit(f"the image's command has ended with exit code {self._process.wait()}")
        return int(children[0].pid)

    def run_inside(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Runs a command of the image as its user, next to what runs in it."""
        enter = ["nsenter", f"--target={self._first}", "--mount", "--pid", "--ipc", "--uts", "--net", "--root"]
        whole = [*enter, *as_user(command, self._config, *CONFINED)]
        return subprocess.run(whole, env=self._environment, capture_output=True, text=True, check=False)

    def run_outside(self, module: str, **variables: str) -> int:
        """Runs a module of this interpreter that sees the network of the container. Returns its exit code."""
        enter = ["nsenter", f"--target={self._first}", "--net"]
        environment = {**os.environ, **variables}
        return subprocess.run([*enter, sys.executable, "-m", module], env=environment, check=False).returncode

    def wait_until_healthy(self, seconds: float) -> float:
        """Runs the image's health check until it passes; returns after how many seconds. Raises SystemExit when it does not."""
        started = time.monotonic()
        while (done := self.run_inside(self._config.health)).returncode:
            if time.monotonic() > started + seconds:
                raise SystemExit(f"the health check does not pass after {seconds:.0f} s: {done.stderr[-2000:]}")
            time.sleep(1.0)
        return time.monotonic() - started

    def stop(self, seconds: float) -> int:
        """Sends the image's stop signal and returns the exit code. Raises TimeoutExpired."""
        psutil.Process(self._first).send_signal(signal.Signals[self._config.stop_signal])
        return self._process.wait(seconds)
