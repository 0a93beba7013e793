"""A type checker for jaxtyping's import hook that checks tensors: their dtype, and their shape across one call.

The engine's functions also take protocols and fakes, which a general type checker could not check. A check costs more than most
functions of a pass, so only functions that take or return tensors are wrapped, and of their calls the first ones and then one
in fifty are checked.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from types import UnionType
from typing import Any, Union, get_args, get_origin

import jaxtyping
from jaxtyping import AbstractArray

ALWAYS, EVERY = 200, 50
"""Calls of each function that are all checked, and of the later ones each that is."""
jaxtyped_always = jaxtyping.jaxtyped


def jaxtyped(fn: Any = None, *, typechecker: Any) -> Any:
    """In place of `jaxtyping.jaxtyped`, which the import hook applies to every function of a module: a function without tensors in
    its signature has its types checked alone, and calls of the others are sampled. Classes are left to jaxtyping."""
    if fn is None:
        return lambda decorated: jaxtyped(decorated, typechecker=typechecker)
    if not inspect.isfunction(fn):
        return jaxtyped_always(fn, typechecker=typechecker)
    if not any(map(_mentions_array, inspect.get_annotations(fn).values())):
        return typechecker(fn)
    checked, calls = jaxtyped_always(fn, typechecker=typechecker), 0

    @wraps(fn)
    def sampled(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        chosen = checked if calls <= ALWAYS or calls % EVERY == 0 else fn
        return chosen(*args, **kwargs)

    return sampled


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


def _mentions_array(hint: Any) -> bool:
    """Whether a hint is a tensor or has one in any of its parts."""
    return _has_array(hint) or isinstance(hint, str) or any(map(_mentions_array, get_args(hint)))


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
