"""Model names of the OpenAI routes: the loaded model, and `<model>@<profile>` for each profile."""

from typing import Any

from app.services.context import Context
from steering.errors import InvalidRequest, ModelNotFound, ProfileNotFound
from steering.schemas.steering import ProfileSteering, Steering
from steering.store.base import Profile, ProfileName


def profile_in(context: Context, model: str) -> str | None:
    """Returns the profile that a model name names, None for the plain model. Raises ModelNotFound for another model."""
    loaded = context.engine.info.name
    if model == loaded:
        return None
    profile = model.removeprefix(f"{loaded}@")
    if profile in ("", model):
        raise ModelNotFound(
            f"model {model[:120]!r} is not served; served are {loaded!r} and its profiles", param="model"
        )
    return profile


async def _profile(context: Context, model: str, name: str) -> Profile:
    try:
        return await context.profile(name)
    except (ProfileNotFound, InvalidRequest) as error:
        raise ModelNotFound(f"model {model[:120]!r} is not served: {error.message}", param="model") from None


async def steering_of(context: Context, model: str, steering: Steering | None) -> Steering | None:
    """Returns the steering of a request: a profile model applies its profile before the request's interventions."""
    profile = profile_in(context, model)
    if profile is None:
        return steering
    if isinstance(steering, ProfileSteering):
        raise InvalidRequest(
            "the model already names a profile; 'steering' may only list interventions", param="steering"
        )
    await _profile(context, model, profile)
    return ProfileSteering(profile=profile, interventions=tuple(steering or ()))


async def list_models(context: Context) -> list[dict[str, Any]]:
    """Lists the model and its profiles by their names alone: one that is damaged is refused when it is used."""
    name = context.engine.info.name
    profiles = await context.store.profiles.names()
    return [_item(name, None), *(_item(f"{name}@{profile.name}", profile) for profile in profiles)]


async def describe_model(context: Context, name: str) -> dict[str, Any]:
    """Describes one model. Raises ModelNotFound."""
    profile = profile_in(context, name)
    return _item(name, None if profile is None else await _profile(context, name, profile))


def _item(name: str, profile: Profile | ProfileName | None) -> dict[str, Any]:
    item: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "steering-server"}
    if profile is not None:
        item |= {"profile": profile.name, "namespace": profile.namespace, "description": profile.description}
    return item
