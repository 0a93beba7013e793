"""`steer bake`: writes a model that has its steering in its weights."""

import asyncio
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import ValidationError
from typer import BadParameter, Option

from app.cli.commands import Output, Steer, Steering, SteerLayers, command, steering_of
from app.cli.terminal import settings_of, shown, stderr
from app.core.process_settings import prepare_for_torch
from steering.client import Client
from steering.spec import SteeringSpec


@dataclass(frozen=True, slots=True)
class ServedVectors:
    """A VectorSource that exports vectors from a server."""

    client: Client

    async def get(self, name: str, version: int | None = None) -> Any:
        """See VectorSource.get."""
        from steering.store.blob import decode  # noqa: PLC0415 - imports torch

        return decode(self.client.export_vector(name if version is None else f"{name}@{version}"))


@command
def bake(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    output: Annotated[Path, Option("--output", "-o", help="Folder or .gguf file to write.")],
    model: Annotated[
        str | None, "The embedded model, a Hugging Face id, a folder, a GGUF path; as on the server."
    ] = None,
    revision: Annotated[str | None, "Pinned revision of a Hugging Face id."] = None,
    dtype: Annotated[str, "auto, float32, float16 or bfloat16."] = "auto",
    steer: Steer = None,
    layers: SteerLayers = None,
    steering: Steering = None,
    lora: Annotated[bool, Option("--lora", help="Write a LoRA in the format of PEFT instead of a model.")] = False,
) -> Output:
    """Write a model with steering in its weights, or a LoRA, and compare it with the served steering. Vectors come from the server."""
    interventions = steering_of(steer, layers, steering=steering)
    if not interventions:
        raise BadParameter("expected one of --steer NAME=STRENGTH, --steering")
    try:
        spec = SteeringSpec.model_validate({"interventions": interventions})
    except ValidationError as error:
        raise BadParameter(error.errors()[0]["msg"], param_hint="--steering") from None
    settings = settings_of({})
    prepare_for_torch()
    from steering.lab.bake import BakeRequest, bake_model  # noqa: PLC0415 - imports torch

    request = BakeRequest(model, spec, output, settings.cache_dir, revision, dtype, lora)
    with stderr.status("loading the model") as status:
        found = asyncio.run(bake_model(request, ServedVectors(client), lambda step: status.update(shown(step))))
    lines = [
        f"wrote {output}: {', '.join(found.layers)}",
        f"KL(served || baked) {found.kl:.2g} nats a token, at most {found.largest_kl:.2g}, on {found.tokens} tokens of neutral text; "
        f"KL(served || unsteered) {found.unsteered_kl:.2g}",
    ]
    return asdict(found), [shown(line) for line in lines]
