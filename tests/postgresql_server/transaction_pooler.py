"""TransactionPooler: gives each transaction of a PostgreSQL client the next of a few server connections.

Like PgBouncer with pool_mode = transaction and without support for prepared statements. A client whose transactions need
anything that an earlier one left in its session (a prepared statement, a setting, a lock) fails here.
"""

import asyncio
import struct
from pathlib import Path
from typing import Self

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
PROTOCOL = 196608


async def message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """(type, the whole message with its type and length)."""
    kind, size = struct.unpack("!cI", head := await reader.readexactly(5))
    return kind, head + await reader.readexactly(size - 4)


class TransactionPooler:
    """Listens on a socket in `folder` and forwards to the server whose socket is in `server`, in one database."""

    def __init__(self, folder: Path, server: Path, database: str, connections: int = 2) -> None:
        self.folder, self._server, self._database, self._count = folder, server, database, connections
        self._free: asyncio.Queue[Streams] = asyncio.Queue()
        self._greeting = b""
        self.transactions = 0

    async def __aenter__(self) -> Self:
        for _ in range(self._count):
            self._free.put_nowait(await self._connect())
        self._listener = await asyncio.start_unix_server(self._serve, self.folder / ".s.PGSQL.5432")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        while not self._free.empty():
            self._free.get_nowait()[1].close()

    async def _connect(self) -> Streams:
        reader, writer = await asyncio.open_unix_connection(self._server / ".s.PGSQL.5432")
        names = f"user\0postgres\0database\0{self._database}\0\0".encode()
        writer.write(struct.pack("!II", 8 + len(names), PROTOCOL) + names)
        self._greeting = b""
        while True:
            kind, whole = await message(reader)
            self._greeting += whole  # authentication, parameters, the key for cancelling, ready
            if kind == b"Z":
                return reader, writer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size, code = struct.unpack("!II", await reader.readexactly(8))
                if code not in (SSL_REQUEST, GSS_REQUEST):
                    break
                writer.write(b"N")
            await reader.readexactly(size - 8)
            if code == CANCEL_REQUEST:
                return
            writer.write(self._greeting)
            while await self._transaction(reader, writer):
                self.transactions += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _transaction(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Forwards until the server is idle again; returns whether the client goes on."""
        kind, whole = await message(reader)
        if kind == b"X":
            return False
        from_server, to_server = streams = await self._free.get()
        while True:
            to_server.write(whole)
            if kind in b"QS":  # a query or a sync: the server answers up to "ready"
                while (answer := await message(from_server))[0] != b"Z":
                    writer.write(answer[1])
                writer.write(answer[1])
                if answer[1][-1:] == b"I":
                    self._free.put_nowait(streams)
                    return True
            kind, whole = await message(reader)
