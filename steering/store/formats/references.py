"""Which vectors a steering names: what a delete has to ask before it takes one away."""

from collections.abc import Mapping

from steering.errors import VectorInUse
from steering.spec import SteeringSpec, vector_names


def vectors_named(steering: SteeringSpec) -> frozenset[str]:
    """Names without versions, from `vector`, `to` and every condition inside `when`."""
    return frozenset(written.partition("@")[0] for written in vector_names(steering))


def refuse_if_used(name: str, profiles: Mapping[str, SteeringSpec], default: SteeringSpec | None) -> None:
    """Raises VectorInUse, naming the users, while a profile or the default steering names any version of the vector."""
    users = [f"profile {profile!r}" for profile, steering in profiles.items() if name in vectors_named(steering)]
    if default is not None and name in vectors_named(default):
        users.append("the default steering")
    if users:
        shown = ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
        raise VectorInUse(f"vector {name!r} is named by {shown}; change those first, or force the delete")
