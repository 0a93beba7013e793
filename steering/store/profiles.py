"""Profiles: named steerings, and the default steering of requests that name none."""

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.errors import ProfileNotFound
from steering.schemas.resources import ProfileAnswer
from steering.spec import SteeringSpec, vector_names
from steering.store.database import AnyRow, Namespaced, check_count, check_storage, exchange, seen_from, upsert
from steering.store.records import (
    DESCRIPTION_LIMIT,
    Page,
    ProfileName,
    check_text,
    now,
    read_steering,
    read_valid,
    write_steering,
)
from steering.store.references import require_vectors
from steering.store.tables import DefaultSteeringRow, ProfileRow, columns_of
from steering.threads import run_in_thread
from steering.vectors import check_name

_LABELS = (ProfileRow.namespace, ProfileRow.name, ProfileRow.description, ProfileRow.created_at, ProfileRow.updated_at)


class Profiles(Namespaced):
    """The profiles that a namespace sees, and its default steering. Vectors that they name exist when they are stored."""

    async def put(self, name: str, steering: SteeringSpec, description: str = "") -> ProfileAnswer:
        """Creates or replaces the profile of that name. Raises VectorNotFound, InvalidRequest, StorageFull."""
        check_text(description, "description", DESCRIPTION_LIMIT)
        key = self._key(name)
        text = write_steering(steering)
        values = {"description": description, "steering": text, "created_by": self.writer.key, "size": len(text)}

        async def save(connection: AsyncConnection) -> ProfileAnswer:
            await require_vectors(connection, self.namespace, vector_names(steering))
            columns = select(ProfileRow.created_at, ProfileRow.created_by, ProfileRow.size)
            before = (await connection.execute(columns.filter_by(**key))).first()
            if before is None:
                own = [ProfileRow.namespace == self.namespace]
                await check_count(connection, ProfileRow, own, self.writer.max_profiles, "namespace")
            replaced = before.size if before is not None and before.created_by == self.writer.key else 0
            await check_storage(connection, self.namespace, self.writer, len(text) - replaced)
            dates = {"created_at": now() if before is None else before.created_at, "updated_at": now()}
            await connection.run_sync(upsert, ProfileRow, key, {**values, **dates})
            return ProfileAnswer(**key, **dates, description=description, interventions=steering.interventions)

        return await self.database.write(save)

    async def get(self, name: str) -> ProfileAnswer:
        """Returns one profile of the own namespace, else of `shared`. Raises ProfileNotFound, StoreCorrupt."""
        seen = (seen_from(ProfileRow, self.namespace), ProfileRow.name == check_name(name))
        rows = await self.database.rows(select(*_LABELS, ProfileRow.steering).where(*seen))
        if not rows:
            raise _not_found(name)
        return _from_row(rows[0])

    async def find(self, limit: int = 50, cursor: str | None = None) -> Page[ProfileAnswer]:
        """Lists visible profiles, by name. A page has fewer than `limit` where they are large."""
        seen = seen_from(ProfileRow, self.namespace)
        sizes = select(ProfileRow.name, ProfileRow.size.label("bytes")).where(seen)
        page, following = await self.database.page(sizes, ProfileRow.name, "profile", limit, cursor)
        chosen = ProfileRow.name.in_([row.name for row in page])
        query = select(*_LABELS, ProfileRow.steering).where(seen, chosen).order_by(ProfileRow.name)
        profiles, damaged = await run_in_thread(read_valid, _from_row, await self.database.rows(query))
        return Page(profiles, following, tuple(row.name for row in damaged))

    async def names(self, limit: int | None = None) -> tuple[ProfileName, ...]:
        """Returns the names of visible profiles, damaged ones included, the first `limit` of them. Reads no steering."""
        query = select(*columns_of(ProfileRow, ProfileName)).where(seen_from(ProfileRow, self.namespace))
        rows = await self.database.rows(query.order_by(ProfileRow.name).limit(limit))
        return tuple(ProfileName(*row) for row in rows)

    async def delete(self, name: str) -> None:
        """Deletes a profile of this namespace. Raises ProfileNotFound."""
        if not await self.database.change(delete(ProfileRow).filter_by(**self._key(name)), when_full=True):
            raise _not_found(name)

    async def default(self) -> SteeringSpec | None:
        """Returns the default steering of this namespace alone, None when none is set."""
        own = DefaultSteeringRow.namespace == self.namespace
        rows = await self.database.rows(select(DefaultSteeringRow.steering).where(own))
        return read_default(self.namespace, rows[0].steering) if rows else None

    async def set_default(self, steering: SteeringSpec | None) -> None:
        """Sets the default steering; None clears it. Raises VectorNotFound, InvalidRequest."""
        values = None if steering is None else {"steering": write_steering(steering), "updated_at": now()}
        names = () if steering is None else tuple(vector_names(steering))

        async def save(connection: AsyncConnection) -> None:
            await require_vectors(connection, self.namespace, names)
            key = {"namespace": self.namespace}
            await connection.run_sync(exchange, "default_steering", DefaultSteeringRow, key, values)

        await self.database.write(save, when_full=steering is None)

    def _key(self, name: str) -> dict[str, str]:
        return {"namespace": self.namespace, "name": check_name(name)}


def read_default(namespace: str, text: str) -> SteeringSpec:
    """Reads a stored default steering. Raises StoreCorrupt."""
    return read_steering(text, f"the default steering of namespace {namespace!r}")


def _from_row(row: AnyRow) -> ProfileAnswer:
    interventions = read_steering(row.steering, f"profile {row.name!r}").interventions
    labels = {column.key: getattr(row, column.key) for column in _LABELS}
    return ProfileAnswer(**labels, interventions=interventions)


def _not_found(name: str) -> ProfileNotFound:
    return ProfileNotFound(f"there is no profile {name!r}", param="profile")
