"""Prints the progress of a run, one line in ten seconds."""

import time

from steering.workflows.generate import Progress

PAUSE = 10.0


def progress_printer(what: str) -> Progress:
    """Returns a Progress that prints at the start, at the end and at most every PAUSE seconds between."""
    began = last = time.monotonic()

    def report(done: int, total: int, message: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PAUSE or done in {0, total}:
            last = now
            print(f"{what}: {message} {done} of {total}, {now - began:.0f} s", flush=True)

    return report
