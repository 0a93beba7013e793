"""ForkedProcess: a server's process that is forked from one in which its imports are made, instead of making them again.

The imports of a server take seconds of a processor, and the tests start dozens of servers. The process that they are forked from has
imported, and nothing else: it has one thread and no OpenMP pool. A server has its own process id, signals and exit code.
"""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.app.addresses import announced

PRELOADED = "tests.preloaded"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([PRELOADED])


def _run(module: str, arguments: Sequence[object], environment: Mapping[str, str], log: Path) -> None:
    """Becomes the process: its output, its environment, its `main`."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output, stream)
    os.close(output)
    if PRELOADED not in sys.modules or len([*Path("/proc/self/task").iterdir()]) != 1:
        raise RuntimeError(f"{PRELOADED} could not be imported before the fork, or has started threads")
    os.environ.clear()
    os.environ.update(environment)
    sys.exit(importlib.import_module(module).main(*arguments))


class ForkedProcess:
    """Runs `main` of a module, which writes to a log. Has what the tests need of subprocess.Popen."""

    def __init__(self, module: str, *arguments: object, log: Path, environment: Mapping[str, str] = os.environ) -> None:
        """The arguments are those of `main`; what it returns or exits with is the exit code."""
        self.log, self.args = log, [module, *map(str, arguments)]
        log.touch(0o600)
        self._process = FORKS.Process(target=_run, args=(module, arguments, dict(environment), log), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def address(self, seconds: float = 120.0) -> str:
        """Returns the address that a server says it listens on, once it says so. Fails when it ends before, or the time is up."""
        until = time.monotonic() + seconds
        while (found := announced(self.log.read_text())) is None:
            assert self.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)
        return found

    @property
    def returncode(self) -> int | None:
        """The exit code; of a process that a signal ended, the negative number of that. None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """See subprocess.Popen.poll."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """See subprocess.Popen.wait. Raises TimeoutExpired."""
        self._process.join(timeout)
        code = self.returncode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        """See subprocess.Popen.send_signal."""
        if self.returncode is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """See subprocess.Popen.kill."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """See subprocess.Popen.terminate."""
        self.send_signal(signal.SIGTERM)
