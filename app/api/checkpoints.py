"""Finished parts of long jobs: the same request finds them, so that a job that was interrupted or cancelled goes on where it stopped."""

import hashlib
from dataclasses import dataclass, field

import structlog

from app.api.context import Context
from app.api.policy import Policy
from steering.errors import SteeringError
from steering.store.database import Writer
from steering.store.store import Store

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class StoredCheckpoints:
    """Keeps parts as outputs of jobs, which are deleted by age and count against the storage of the key. They belong to one namespace and
    one policy: what the policy makes mandatory acts on every answer, and no plan of a request names it."""

    store: Store
    namespace: str
    writer: Writer
    policy: Policy
    _sought: dict[str, str] = field(default_factory=dict)

    async def load(self, key: str) -> str | None:
        """See Checkpoints.load."""
        self._sought[key] = self._id(key)
        return await self.store.outputs.read(self._sought[key], 0)

    async def save(self, key: str, content: str) -> None:
        """See Checkpoints.save. A part that cannot be stored is computed again, and so is one during which the policy changed."""
        found = self._id(key)
        if self._sought.pop(key, None) != found:
            return
        try:
            if await self.store.outputs.read(found, 0) is None:  # an equal job may have been faster
                await self.store.outputs.append(found, 0, content, self.namespace, self.writer)
        except SteeringError as error:
            log.warning("part_not_stored", code=error.code)

    def _id(self, key: str) -> str:
        active = self.policy.active
        return hashlib.sha256(repr((self.namespace, key, active.mandatory.key, active.spec)).encode()).hexdigest()


def checkpoints_of(context: Context) -> StoredCheckpoints:
    """Returns where the parts of a job of this request are kept."""
    writer = Writer(context.key.name, context.key.limits.storage_bytes)
    return StoredCheckpoints(context.state.store, context.namespace, writer, context.state[Policy])
