"""Run as a program: processes that write to one store together, or are killed while they write. Prints a JSON report.

Importing torch takes seconds, so this process imports once and forks its children, and never opens a store itself.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import torch
from sqlalchemy import text

from steering.store import open_store
from steering.store.records import JobRecord
from steering.store.store import Store
from tests.steering.store.planted import planted, same_numbers

BIG = {"layers": 8, "d_model": 2048}
Work = Callable[[Store, int], Awaitable[Any]]


def fork(url: str, work: Work) -> tuple[int, int]:
    """(process id, the end of a pipe to read its report from). The child opens the store, works and never returns."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _child(url, work, writing)
    os.close(writing)
    return pid, reading


def _child(url: str, work: Work, writing: int) -> NoReturn:
    async def live() -> Any:
        store = await open_store(url)
        try:
            return await work(store, writing)
        finally:
            await store.close()

    try:
        report = asyncio.run(live())
    except BaseException as error:
        report = {"problems": [f"{type(error).__name__}: {error}"]}
    os.write(writing, json.dumps(report).encode())
    os._exit(0)


def read_all(reading: int) -> bytes:
    pieces = []
    while piece := os.read(reading, 1 << 16):
        pieces.append(piece)
    os.close(reading)
    return b"".join(pieces)


async def crowd(store: Store, _: int) -> dict[str, list[str]]:
    """Twenty-five writers and twenty-five readers at once, all on one name."""
    problems: list[str] = []

    async def write(number: int) -> None:
        for turn in range(3):
            put = await store.shared.vectors.put(planted("shared", number))
            await store.shared.jobs.put(
                JobRecord(id=f"job-{os.getpid()}-{number}-{turn}", kind="extract", status="running")
            )
            if not same_numbers(await store.shared.vectors.get("shared", put.version), planted("shared", number)):
                problems.append(f"version {put.version} is not what was put")

    async def read() -> None:
        for _ in range(6):
            await store.shared.vectors.find(search="shared")
            await store.shared.jobs.find()
            await store.shared.profiles.default()

    done = await asyncio.gather(
        *(write(number) for number in range(25)), *(read() for _ in range(25)), return_exceptions=True
    )
    problems += [f"{type(error).__name__}: {error}" for error in done if error is not None]
    return {"problems": problems}


def writer(name: str) -> Work:
    """Puts version after version, one byte into the pipe for each that was acknowledged, until it is killed."""

    async def write(store: Store, writing: int) -> None:
        version = 0
        while True:
            version += 1
            await store.shared.vectors.put(planted(name, version, **BIG))
            os.write(writing, b".")

    return write


def checker(acknowledged: dict[str, int]) -> Work:
    """Every acknowledged version is there, at most one more, each readable and exactly what was put."""

    async def check(store: Store, _: int) -> dict[str, Any]:
        problems, kept = [], 0
        assert isinstance(store, Store)
        [(verdict,)] = await store.database.rows(text("PRAGMA integrity_check"))
        if verdict != "ok":
            problems.append(f"integrity check: {verdict}")
        found = {vector.name: vector.version for vector in (await store.shared.vectors.find(200)).items}
        for name, count in acknowledged.items():
            newest = found.get(name, 0)
            if not count <= newest <= count + 1:
                problems.append(f"{name}: {count} acknowledged, newest is {newest}")
            for version in range(1, newest + 1):
                back = await store.shared.vectors.get(name, version)
                kept += 1
                if not same_numbers(back, planted(name, version, **BIG)):
                    problems.append(f"{back.id} is not what was put")
        return {"problems": problems, "kept": kept}

    return check


def kill_while_writing(url: str, rounds: int) -> dict[str, Any]:
    """Every third child is killed at any moment since its birth, the others some way into their writes."""
    chance = random.Random(0)
    acknowledged: dict[str, int] = {}
    problems: list[str] = []
    for number in range(rounds):
        name = f"round-{number}"
        pid, reading = fork(url, writer(name))
        before = os.read(reading, 1) if number % 3 else b""
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        acknowledgements = before + read_all(reading)
        if acknowledgements.strip(b"."):
            problems.append(f"{name} failed before it was killed: {acknowledgements.decode()}")
        acknowledged[name] = len(acknowledgements)
    report = _run(url, checker(acknowledged))
    return {**report, "problems": problems + report["problems"]}


def _run(url: str, work: Work) -> Any:
    pid, reading = fork(url, work)
    report = json.loads(read_all(reading))
    os.waitpid(pid, 0)
    return report


def two_crowds(url: str) -> dict[str, Any]:
    """Two processes that open the same fresh file at the same moment, and then crowd it."""
    children = [fork(url, crowd) for _ in range(2)]
    problems: list[str] = []
    for pid, reading in children:
        problems += json.loads(read_all(reading))["problems"]
        os.waitpid(pid, 0)
    return {"problems": problems}


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, url, *rest = sys.argv[1:]
    print(json.dumps(two_crowds(url) if task == "crowd" else kill_while_writing(url, int(rest[0]))))
