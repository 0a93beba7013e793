"""Side: one thing that is measured, in a process of its own that stands still while another has its turn."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from benchmarks.memory import peak_bytes, reset_peak, session_members

LOGS = Path(".cache") / "benchmarks"
SETTLE_SECONDS = 0.05
"""Between waking a process and asking it: its threads find their processors again."""
LONGEST_ANSWER = 1800.0
"""Seconds after which a side that does not answer is ended: the first start compiles."""


class SideFailed(Exception):
    """A side could not start, or could not answer; its log says more."""


class Process:
    """A program in a session of its own, so that it and its children can be paused, weighed and ended together."""

    def __init__(
        self,
        name: str,
        module: str,
        options: Mapping[str, Any],
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        answers: bool = False,
    ) -> None:
        """answers: whether its output is read by us; otherwise it goes to the log as well."""
        LOGS.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = LOGS / f"{name.replace(' ', '-')}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [python, "-m", module, json.dumps(dict(options))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if answers else log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Runs for the length of a block, and stands still after it."""
        self._signal(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def peak(self) -> int | None:
        """Peak resident bytes of the process and its children since the last `forget_peak`; None where unknown."""
        return peak_bytes(self._members())

    def forget_peak(self) -> None:
        """Starts the peak anew."""
        reset_peak(self._members())

    def close(self) -> None:
        """Asks it to end, and ends it. Harmless when repeated."""
        self._signal(signal.SIGCONT)
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _members(self) -> list[int]:
        return session_members(self._process.pid)

    def _signal(self, number: int) -> None:
        for member in self._members():
            with suppress(ProcessLookupError):
                os.kill(member, number)


class Side(Process):
    """A Process that answers questions (see `answering`)."""

    def __init__(
        self,
        name: str,
        module: str,
        options: Mapping[str, Any] | None = None,
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Blocks until it is ready. Raises SideFailed."""
        super().__init__(name, module, options or {}, python=python, environment=environment, answers=True)
        try:
            self.facts: dict[str, Any] = self._read()
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def ask(self, task: str, **arguments: Any) -> dict[str, Any]:
        """The answer, with `peak_bytes` beside it. Everyone else should be standing still. Raises SideFailed."""
        with self.awake():
            self.forget_peak()
            stream = self._pipe(self._process.stdin)
            stream.write(json.dumps({"task": task, **arguments}).encode() + b"\n")
            stream.flush()
            return {**self._read(), "peak_bytes": self.peak()}

    def _read(self) -> dict[str, Any]:
        watchdog = threading.Timer(LONGEST_ANSWER, self._signal, args=(signal.SIGKILL,))
        watchdog.daemon = True
        watchdog.start()
        line = self._pipe(self._process.stdout).readline()
        watchdog.cancel()
        if not line:
            raise SideFailed(f"{self.name} ended before it answered; see {self.log}")
        message = json.loads(line)
        if "error" in message:
            raise SideFailed(f"{self.name} failed; see {self.log}\n{message['error']}")
        answer: dict[str, Any] = message["answer"]
        return answer

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe
