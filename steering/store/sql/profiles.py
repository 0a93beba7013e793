"""SqlProfiles: the ProfileStore on a database, the default steering included."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.spec import SteeringSpec
from steering.store.base import Profile
from steering.store.formats.serialization import check_profile, profile_not_found, read_steering, write_steering
from steering.store.rules import now
from steering.store.sql.database import Database
from steering.store.sql.tables import DefaultSteeringRow, ProfileRow
from steering.vectors import check_name

COLUMNS = (ProfileRow.name, ProfileRow.description, ProfileRow.steering, ProfileRow.created_at, ProfileRow.updated_at)


@final
class SqlProfiles:
    """See `steering.store.base.ProfileStore`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, profile: Profile) -> Profile:
        """See ProfileStore.put."""
        check_profile(profile)
        values = {"description": profile.description, "steering": write_steering(profile.steering)}

        async def save(connection: AsyncConnection) -> Profile:
            created = await connection.scalar(select(ProfileRow.created_at).where(ProfileRow.name == profile.name))
            stored = replace(profile, created_at=created or now(), updated_at=now())
            row = {**values, "name": stored.name, "created_at": stored.created_at, "updated_at": stored.updated_at}
            change = insert(ProfileRow) if created is None else update(ProfileRow).where(ProfileRow.name == stored.name)
            await connection.execute(change.values(row))
            return stored

        return await self._database.write(save)

    async def get(self, name: str) -> Profile:
        """See ProfileStore.get."""
        check_name(name)
        rows = await self._database.rows(select(*COLUMNS).where(ProfileRow.name == name))
        if not rows:
            raise profile_not_found(name)
        return _from_row(rows[0])

    async def all(self) -> tuple[Profile, ...]:
        """See ProfileStore.all."""
        return tuple(_from_row(row) for row in await self._database.rows(select(*COLUMNS).order_by(ProfileRow.name)))

    async def delete(self, name: str) -> None:
        """See ProfileStore.delete."""
        check_name(name)

        async def remove(connection: AsyncConnection) -> None:
            deleted = await connection.execute(delete(ProfileRow).where(ProfileRow.name == name))
            if deleted.rowcount == 0:
                raise profile_not_found(name)

        await self._database.write(remove)

    async def default(self) -> SteeringSpec | None:
        """See ProfileStore.default."""
        rows = await self._database.rows(select(DefaultSteeringRow.steering))
        return read_steering(rows[0][0], "the default steering") if rows else None

    async def set_default(self, steering: SteeringSpec | None) -> None:
        """See ProfileStore.set_default."""

        async def exchange(connection: AsyncConnection) -> None:
            await connection.execute(delete(DefaultSteeringRow))
            if steering is not None:
                row = {"id": 1, "steering": write_steering(steering), "updated_at": now()}
                await connection.execute(insert(DefaultSteeringRow).values(row))

        await self._database.write(exchange)


def _from_row(row: Sequence[Any]) -> Profile:
    name, description, steering, created_at, updated_at = row
    return Profile(name, read_steering(steering, f"profile {name!r}"), description, created_at, updated_at)
