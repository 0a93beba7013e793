"""Model names of the OpenAI routes: the loaded model, and `<model>@<profile>` for each profile."""

from dataclasses import dataclass
from typing import Any

from app.services.context import Context
from steering.errors import InvalidRequest, ModelNotFound, ProfileNotFound
from steering.schemas.steering import ProfileSteering, Steering
from steering.store.base import Profile


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model as a client names it. profile: None for the plain model."""

    name: str
    profile: str | None = None


def named_model(context: Context, name: str) -> NamedModel:
    """Reads a model name. Raises ModelNotFound for another model."""
    loaded = context.engine.info.name
    if name == loaded:
        return NamedModel(name)
    if name.startswith(f"{loaded}@") and len(name) > len(loaded) + 1:
        return NamedModel(name, name[len(loaded) + 1 :])
    raise ModelNotFound(f"model {name[:120]!r} is not served; served are {loaded!r} and its profiles", param="model")


async def steering_of(model: NamedModel, steering: Steering | None, context: Context) -> Steering | None:
    """Returns the steering of a request: a profile model applies its profile before the request's interventions."""
    if model.profile is None:
        return steering
    if isinstance(steering, ProfileSteering):
        raise InvalidRequest(
            "the model already names a profile; 'steering' may only list interventions", param="steering"
        )
    try:
        await context.profile(model.profile)
    except (ProfileNotFound, InvalidRequest) as error:
        raise ModelNotFound(f"model {model.name[:120]!r} is not served: {error.message}", param="model") from None
    return ProfileSteering(profile=model.profile, interventions=tuple(steering or ()))


async def list_models(context: Context) -> list[dict[str, Any]]:
    """Lists the model and its profiles."""
    name = context.engine.info.name
    profiles = [_item(f"{name}@{profile.name}", profile) for profile in await context.store.profiles.all()]
    return [_item(name, None), *profiles]


async def describe_model(context: Context, name: str) -> dict[str, Any]:
    """Describes one model. Raises ModelNotFound."""
    model = named_model(context, name)
    if model.profile is None:
        return _item(name, None)
    await steering_of(model, None, context)
    return _item(name, await context.store.profiles.get(model.profile))


def _item(name: str, profile: Profile | None) -> dict[str, Any]:
    item: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "steering-server"}
    if profile is not None:
        item |= {"profile": profile.name, "namespace": profile.namespace, "description": profile.description}
    return item
