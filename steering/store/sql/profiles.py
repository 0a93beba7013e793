"""SqlProfiles: the ProfileStore on a database, the default steering included."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

from sqlalchemy import ColumnElement, and_, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.namespaces import visible_from
from steering.spec import SteeringSpec
from steering.store.base import Profile
from steering.store.formats.serialization import check_profile, profile_not_found, read_steering, write_steering
from steering.store.rules import now
from steering.store.sql.database import Database
from steering.store.sql.servers import note_change
from steering.store.sql.tables import DefaultSteeringRow, ProfileRow
from steering.vectors import check_name

COLUMNS = (
    ProfileRow.namespace,
    ProfileRow.name,
    ProfileRow.description,
    ProfileRow.steering,
    ProfileRow.created_at,
    ProfileRow.updated_at,
)


@final
class SqlProfiles:
    """See `steering.store.base.ProfileStore`."""

    def __init__(self, database: Database, namespace: str) -> None:
        self._database, self._namespace = database, namespace

    async def put(self, profile: Profile) -> Profile:
        """See ProfileStore.put."""
        check_profile(profile)
        values = {"description": profile.description, "steering": write_steering(profile.steering)}
        own = self._own(profile.name)

        async def save(connection: AsyncConnection) -> Profile:
            created = await connection.scalar(select(ProfileRow.created_at).where(own))
            stored = replace(profile, created_at=created or now(), updated_at=now(), namespace=self._namespace)
            labels = {name: getattr(stored, name) for name in ("namespace", "name", "created_at", "updated_at")}
            change = insert(ProfileRow) if created is None else update(ProfileRow).where(own)
            await connection.execute(change.values({**values, **labels}))
            return stored

        return await self._database.write(save)

    async def get(self, name: str) -> Profile:
        """See ProfileStore.get."""
        found = await self._visible(ProfileRow.name == check_name(name))
        if not found:
            raise profile_not_found(name)
        return found[0]

    async def all(self) -> tuple[Profile, ...]:
        """See ProfileStore.all."""
        return await self._visible()

    async def delete(self, name: str) -> None:
        """See ProfileStore.delete."""
        if not await self._database.change(delete(ProfileRow).where(self._own(check_name(name)))):
            raise profile_not_found(name)

    async def default(self) -> SteeringSpec | None:
        """See ProfileStore.default."""
        own = DefaultSteeringRow.namespace == self._namespace
        rows = await self._database.rows(select(DefaultSteeringRow.steering).where(own))
        return read_steering(rows[0][0], "the default steering") if rows else None

    async def set_default(self, steering: SteeringSpec | None) -> None:
        """See ProfileStore.set_default."""

        async def exchange(connection: AsyncConnection) -> None:
            await note_change(connection, "default_steering")
            own = DefaultSteeringRow.namespace == self._namespace
            await connection.execute(delete(DefaultSteeringRow).where(own))
            if steering is not None:
                row = {"namespace": self._namespace, "steering": write_steering(steering), "updated_at": now()}
                await connection.execute(insert(DefaultSteeringRow).values(row))

        await self._database.write(exchange)

    def _own(self, name: str) -> ColumnElement[bool]:
        return and_(ProfileRow.namespace == self._namespace, ProfileRow.name == name)

    async def _visible(self, *conditions: ColumnElement[bool]) -> tuple[Profile, ...]:
        """Returns profiles by name, those of the own namespace in place of the shared ones of the same name."""
        visible = visible_from(self._namespace)
        query = select(*COLUMNS).where(ProfileRow.namespace.in_(visible), *conditions).order_by(ProfileRow.name)
        found: dict[str, Sequence[Any]] = {}
        for row in await self._database.rows(query):
            if row[1] not in found or row[0] == self._namespace:
                found[row[1]] = row
        return tuple(map(_from_row, found.values()))


async def read_defaults(database: Database) -> dict[str, SteeringSpec]:
    """Returns the default steering of every namespace that has one."""
    rows = await database.rows(select(DefaultSteeringRow.namespace, DefaultSteeringRow.steering))
    return {namespace: read_steering(text, "the default steering") for namespace, text in rows}


def _from_row(row: Sequence[Any]) -> Profile:
    namespace, name, description, steering, created_at, updated_at = row
    where = f"profile {name!r}"
    return Profile(name, read_steering(steering, where), description, created_at, updated_at, namespace)
