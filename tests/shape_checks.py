"""A type checker for jaxtyping's import hook that checks tensors: their dtype, and their shape across one call.

The engine's functions also take protocols and fakes, which a general type checker could not check.
"""

import inspect
from collections.abc import Callable
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jaxtyping import AbstractArray


def check_shapes(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with checks of its tensor arguments and result; functions without any stay as they are."""
    signature = inspect.signature(fn)
    hints = {name: one.annotation for name, one in signature.parameters.items() if _has_array(one.annotation)}
    # results of coroutines, and of generators, come too late to be checked
    result_hint = None if inspect.iscoroutinefunction(fn) else signature.return_annotation
    if not hints and not _has_array(result_hint):
        return fn

    def checked(*args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(*args, **kwargs).arguments
        for name, hint in hints.items():
            if name in arguments and not _fits(arguments[name], hint):
                raise TypeError(f"{name} is {_shown(arguments[name])}, not {hint}")
        result = fn(*args, **kwargs)
        if _has_array(result_hint) and not _fits(result, result_hint):
            raise TypeError(f"the result is {_shown(result)}, not {result_hint}")
        return result

    return checked


def _has_array(hint: Any) -> bool:
    """Whether a hint is a tensor, or a union or tuple with one."""
    if get_origin(hint) in (Union, UnionType, tuple):
        return any(map(_has_array, get_args(hint)))
    return inspect.isclass(hint) and issubclass(hint, AbstractArray)


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return not hasattr(value, "shape") or any(_has_array(part) and _fits(value, part) for part in parts)
    if origin is tuple and isinstance(value, tuple):
        each = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return len(each) == len(value) and all(_fits(one, part) for one, part in zip(value, each, strict=True))
    return not _has_array(hint) or isinstance(value, hint)


def _shown(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
