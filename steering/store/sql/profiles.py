"""SqlProfiles: the ProfileStore on a database, the default steering included."""

from dataclasses import replace
from typing import Any, final

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from steering.errors import StoreCorrupt
from steering.namespaces import visible_from
from steering.spec import SteeringSpec, vector_names
from steering.store.base import Profile, ProfileStore
from steering.store.formats.serialization import check_profile, profile_not_found, read_steering, write_steering
from steering.store.rules import now, values_of
from steering.store.sql.database import AnyRow, NamespacePart, exchange, upsert
from steering.store.sql.tables import DefaultSteeringRow, ProfileRow, columns_of
from steering.store.sql.vector_reads import require_vectors
from steering.vectors import check_name


@final
class SqlProfiles(NamespacePart, ProfileStore):
    """The ProfileStore on a database."""

    async def put(self, profile: Profile) -> Profile:
        """See ProfileStore.put."""
        values = {**values_of(check_profile(profile), Profile), "steering": write_steering(profile.steering)}
        key = self._key(profile.name)

        async def save(connection: AsyncConnection) -> Profile:
            await require_vectors(connection, self._namespace, vector_names(profile.steering))
            made = await connection.scalar(select(ProfileRow.created_at).filter_by(**key)) or now()
            labels: dict[str, Any] = {"created_at": made, "updated_at": now(), "namespace": self._namespace}
            await connection.run_sync(upsert, ProfileRow, key, {**values, **labels})
            return replace(profile, **labels)

        return await self._database.write(save)

    async def get(self, name: str) -> Profile:
        """See ProfileStore.get."""
        found = await self._visible(ProfileRow.name == check_name(name))
        if not found:
            raise profile_not_found(name)
        return _from_row(found[0])

    async def all(self) -> tuple[tuple[Profile, ...], tuple[str, ...]]:
        """See ProfileStore.all."""
        valid, damaged = list[Profile](), list[str]()
        for row in await self._visible():
            try:
                valid.append(_from_row(row))
            except StoreCorrupt:
                damaged.append(row.name)
        return tuple(valid), tuple(damaged)

    async def delete(self, name: str) -> None:
        """See ProfileStore.delete."""
        if not await self._database.change(delete(ProfileRow).filter_by(**self._key(check_name(name)))):
            raise profile_not_found(name)

    async def default(self) -> SteeringSpec | None:
        """See ProfileStore.default."""
        own = DefaultSteeringRow.namespace == self._namespace
        rows = await self._database.rows(select(DefaultSteeringRow.steering).where(own))
        return read_steering(rows[0].steering, "the default steering") if rows else None

    async def set_default(self, steering: SteeringSpec | None) -> None:
        """See ProfileStore.set_default."""
        values = None if steering is None else {"steering": write_steering(steering), "updated_at": now()}
        names = () if steering is None else tuple(vector_names(steering))

        async def save(connection: AsyncConnection) -> None:
            await require_vectors(connection, self._namespace, names)
            key = {"namespace": self._namespace}
            await connection.run_sync(exchange, "default_steering", DefaultSteeringRow, key, values)

        await self._database.write(save)

    def _key(self, name: str) -> dict[str, str]:
        return {"namespace": self._namespace, "name": name}

    async def _visible(self, *conditions: ColumnElement[bool]) -> list[AnyRow]:
        """Returns rows of profiles by name, those of the own namespace in place of the shared ones of the same name."""
        visible = ProfileRow.namespace.in_(visible_from(self._namespace))
        query = select(*columns_of(ProfileRow, Profile)).where(visible, *conditions).order_by(ProfileRow.name)
        found: dict[str, AnyRow] = {}
        for row in await self._database.rows(query):
            if row.name not in found or row.namespace == self._namespace:
                found[row.name] = row
        return list(found.values())


def _from_row(row: AnyRow) -> Profile:
    steering = read_steering(row.steering, f"profile {row.name!r}")
    return Profile(**{**values_of(row, Profile), "steering": steering})
