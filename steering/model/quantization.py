"""Quantized weights: what the files of a model contain, and methods that quantize plain weights while they are loaded. Without torch."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

from steering.errors import InvalidRequest

Quantization: TypeAlias = Literal["bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8"]
"""How plain weights are quantized: linear layers alone, without calibration. Activations keep the dtype of the model."""
BITS: Mapping[Quantization, int] = {"bitsandbytes-8bit": 8, "bitsandbytes-4bit": 4, "torchao-int8": 8}
"""Bits of a weight."""


def method_of(config: Any) -> str | None:
    """Returns how the weights in the files are quantized, as transformers names it; None where they are not."""
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        return None
    method = stated.get("quant_method") if isinstance(stated, dict) else getattr(stated, "quant_method", None)
    return str(getattr(method, "value", method))


def check_quantization(
    config: Any, quantization: Quantization | None, find: Callable[[str], object] = find_spec
) -> None:
    """Raises InvalidRequest for weights that are quantized in the files, and without the package (`find`)."""
    if quantization is None:
        return
    method, package = method_of(config), quantization.partition("-")[0]
    if method is not None:
        raise InvalidRequest(
            f"quantization {quantization!r} is for plain weights, and those of this model are quantized in the files ({method})",
            param="quantization",
        )
    if find(package) is None:
        raise InvalidRequest(
            f"quantization {quantization!r} needs the package {package}, which is not installed", param="quantization"
        )


def quantizer(quantization: Quantization, compute_dtype: Any) -> Any:
    """Returns transformers' configuration of a method. compute_dtype: of the products."""
    from transformers import BitsAndBytesConfig, TorchAoConfig  # noqa: PLC0415 - loads torch

    if quantization == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415 - an optional package

        return TorchAoConfig(Int8WeightOnlyConfig())
    if quantization == "bitsandbytes-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute_dtype)
