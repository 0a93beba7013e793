"""ServerProcess: `steer serve` in a process of its own on a free loopback port, and what one may do to it."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from steering.client import ApiError, Client
from tests.app.addresses import announced
from tests.engines import COMPILE_SECONDS
from tests.forked_process import ForkedProcess

READY_SECONDS = 240.0


class ServerProcess:
    """The embedded model behind HTTP. `folder` holds the database, so that a second process finds what the first kept."""

    def __init__(self, folder: Path, model_cache: Path, *, python: str = "", **settings: str) -> None:
        """The client has the first of `api_keys`. python: an interpreter that starts it as `steer serve` is started, of another
        environment for instance. Without one it is forked from a process that has made its imports."""
        self.folder, self.log, self._python = folder, folder / "server.log", python
        self._environment: Mapping[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("STEERING_")},
            "STEERING_CACHE_DIR": str(model_cache),
            "STEERING_DATABASE": f"sqlite:///{folder}/steering.sqlite3",
            "HF_HUB_OFFLINE": "1",
            **{f"STEERING_{name.upper()}": value for name, value in settings.items()},
        }
        self._key = settings.get("api_keys", "").split(",")[0] or None
        self.client: Client
        self.url = ""
        self.process: subprocess.Popen[bytes] | ForkedProcess

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def start(self, port: int = 0) -> None:
        """Starts it, at a free port unless one is given, and returns when it can work. Fails with the end of its log."""
        arguments = ["serve", "--port", str(port)]
        self.log.touch(0o600)
        start = self.log.stat().st_size  # before it is the output of an earlier process
        if self._python:
            command = [self._python, "-m", "app.cli.main", *arguments]
            with self.log.open("ab") as output:
                self.process = subprocess.Popen(command, stdout=output, stderr=output, env=dict(self._environment))
        else:
            self.process = ForkedProcess("app.cli.main", arguments, log=self.log, environment=self._environment)
        try:
            self._connect(start, time.monotonic() + READY_SECONDS)
        except BaseException:  # nobody would end it: an `__enter__` that fails has no `__exit__`
            self.process.kill()
            self.process.wait()
            raise

    def _connect(self, start: int, until: float) -> None:
        """Waits for the address in what it wrote to its log from `start` on, and until it is ready."""
        while (url := announced(self._output_since(start))) is None:
            self._wait(until)
        self.url, self.client = url, Client(url, api_key=self._key, timeout=240.0)
        while not self.ready():
            self._wait(until)

    def _wait(self, until: float) -> None:
        """A moment. Fails once it has ended by itself, or the time is up."""
        assert self.process.poll() is None, f"the server ended by itself:\n{self.last_words()}"
        assert time.monotonic() < until, f"the server was not ready, or not compiled, in time:\n{self.last_words()}"
        time.sleep(0.1)

    def _output_since(self, position: int) -> str:
        return self.log.read_bytes()[position:].decode(errors="replace")

    def ready(self) -> bool:
        """Whether it can work now. What answers at its address after its end is somebody else."""
        if self.process.poll() is not None:
            return False
        try:
            self.client.health()
        except ApiError:
            return False
        return True

    def until_compiled(self) -> None:
        """Waits until its passes are compiled: their bits are others than those of eager ones."""
        until = time.monotonic() + COMPILE_SECONDS
        while not self.client.capabilities().executor.startswith("compiled"):
            self._wait(until)

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def kill(self) -> None:
        """Ends it as a power failure would."""
        self.process.kill()
        self.process.wait()
        self.client.close()

    def terminate(self) -> None:
        """Asks it to stop; it drains first."""
        self.process.send_signal(signal.SIGTERM)
