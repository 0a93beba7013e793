"""DatabaseAddress: a store URL, parsed and checked before anything is opened. Messages never repeat it: it may contain a password."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from steering.errors import InvalidRequest, StoreUnavailable

_DRIVERS = {"sqlite": "aiosqlite", "postgresql": "psycopg"}
_REQUIREMENTS = {"psycopg": "psycopg[binary]"}
"""Driver that is no dependency of every installation -> what pip installs."""
PAGE_BYTES = 4096
CONNECT_SECONDS = 10


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """Where the database is. `page_limit` bounds a SQLite file, in pages of PAGE_BYTES; None leaves it to the disk."""

    url: URL
    page_limit: int | None = None

    @property
    def file(self) -> Path | None:
        """The file of a SQLite database."""
        return Path(self.url.database or "") if self.url.get_backend_name() == "sqlite" else None

    @property
    def sync_url(self) -> URL:
        """The same database through a synchronous driver, for migrations."""
        return self.url.set(drivername="sqlite") if self.file is not None else self.url

    @property
    def engine_options(self) -> dict[str, Any]:
        """Arguments of create_engine, synchronous or not. Parameters are what callers wrote, so no error repeats them."""
        options: dict[str, Any] = {"hide_parameters": True}
        if self.file is None:
            # Behind a transaction pooler every transaction may get another connection, so prepared statements are off.
            options["connect_args"] = {"prepare_threshold": None, "connect_timeout": CONNECT_SECONDS}
        return options

    @property
    def pool_options(self) -> dict[str, Any]:
        """Arguments of create_engine for a pool that is kept: connections that the server has closed are replaced."""
        return {} if self.file is not None else {"pool_pre_ping": True, "pool_timeout": CONNECT_SECONDS}


def read_address(url: str) -> DatabaseAddress:
    """`sqlite:///file`, with `?max_mb=` if wanted, or `postgresql://...`. Raises InvalidRequest for anything else."""
    try:
        parsed = make_url(url)
        backend, _, driver = parsed.drivername.partition("+")
    except (ArgumentError, ValueError) as error:
        raise InvalidRequest("the store URL cannot be read; expected sqlite:///path/to/file", param="store") from error
    if backend not in _DRIVERS or driver not in ("", _DRIVERS[backend]):
        raise InvalidRequest(
            f"the store URL asks for {parsed.drivername!r}; offered are "
            + ", ".join(f"{name} (through {driver})" for name, driver in _DRIVERS.items()),
            param="store",
        )
    parsed = parsed.set(drivername=f"{backend}+{_DRIVERS[backend]}")
    return _read_sqlite(parsed) if backend == "sqlite" else DatabaseAddress(parsed)


def check_driver(module: str) -> None:
    """Raises StoreUnavailable when the driver is not installed: PostgreSQL's is not part of every installation."""
    if find_spec(module) is None:
        message = f"this store needs the Python package {module!r}, which is not installed"
        requirement = _REQUIREMENTS.get(module)
        raise StoreUnavailable(message if requirement is None else f"{message}: pip install '{requirement}'")


def _read_sqlite(url: URL) -> DatabaseAddress:
    path = url.database or ""
    if not path or ":memory:" in path or path.startswith("file:"):
        raise InvalidRequest(
            "a SQLite store is a file: sqlite:///relative/file or sqlite:////absolute/file; "
            "a store that is not kept is memory://",
            param="store",
        )
    unknown = set(url.query) - {"max_mb"}
    if unknown:
        raise InvalidRequest(f"unknown option {sorted(unknown)} in the store URL; known: max_mb", param="store")
    limit = url.query.get("max_mb")
    if limit is None:
        return DatabaseAddress(url)
    if not (isinstance(limit, str) and limit.isascii() and limit.isdigit() and 0 < int(limit) < 1 << 20):
        raise InvalidRequest("max_mb in the store URL must be a positive number of mebibytes", param="store")
    return DatabaseAddress(url.set(query={}), page_limit=(int(limit) << 20) // PAGE_BYTES)
