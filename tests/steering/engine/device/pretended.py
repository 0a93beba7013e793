"""A pretended accelerator: tensors that name a device of their own, compute on the CPU, and refuse or report what only an accelerator shows.

It is torch's backend for Python, PrivateUse1. Results are those of the CPU, bit for bit, so a whole engine runs on it. What it shows:
a tensor of the host among those of the device, which CUDA refuses; float64, which Apple's GPUs do not have; and how much work a pass
gives the device: kernels launched, tensors uploaded, and waits of the host, as `torch.cuda.set_sync_debug_mode` would report them.
One operation counts as one kernel, which is too few for a sort or a sum by index. An operator of our own counts as one too: its body
here is that for a CPU, whose operations are not seen, and on a GPU it is one kernel (steering/injection/fused.py).
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

NAME = "pretended"
FREE = frozenset(
    {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
)
"""Operations that start no kernel, views aside."""
WAITING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "bincount"})
"""Operations whose result, or its shape, the host needs before it goes on."""
MIXING = frozenset({"copy_", "_to_copy"})
"""Operations that copy between devices."""
INDEXING = frozenset({"index", "index_put", "index_put_"})
"""Operations that take an index of the host, which is copied to the device and waited for."""
SCALARS = frozenset({"fill_", "index_put_", "masked_fill", "masked_fill_", "where"})
"""Operations that take a number of the host, a tensor without dimensions, beside those that are pointwise."""
PLACES = ("/steering/", "/transformers/")
TRANSPARENT = (
    "steering/uploads.py",
    "pretended.py",
    *(f"{name}.py" for name in ("test_pretended_device", "test_launches", "driven")),
)


@dataclass
class Work:
    """What a device was given. launches: by operation. uploads, waits: by the function of steering or transformers that asked.

    operators: the names of all operations, with their overloads.
    """

    launches: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    operators: set[str] = field(default_factory=set)


class Pretended(torch.Tensor):
    """A tensor of the pretended device. host: the one that computes; it is no part of what an accelerator's tensor has."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> "Pretended":
        if host.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"the pretended device has no {host.dtype}")
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device(NAME, 0),
        )
        made.host = host
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]  # torch does not annotate it
        return f"{NAME}({self.host!r})"

    def tolist(self) -> Any:
        """Copies the numbers to the host, which waits for them."""
        _note_wait()
        return self.host.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refuses, as every accelerator does."""
        if not force:
            raise TypeError("can't convert a tensor of the pretended device to numpy: use Tensor.cpu() first")
        return self.cpu().numpy()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Attention is one operation of an accelerator where no gradients are wanted; torch would take it apart for this device."""
        fused = func is scaled_dot_product_attention and not torch.is_grad_enabled()
        if fused:
            return _run(func, args, kwargs or {}, name="scaled_dot_product_attention", pointwise=False)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch calls it so
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _dispatched(func, *args, **(kwargs or {}))


_work = Work()


@contextmanager
def measured() -> Iterator[Work]:
    """Counts what the device is given meanwhile."""
    global _work  # noqa: PLW0603 - torch calls a backend's functions without an argument for state
    before, _work = _work, Work()
    try:
        yield _work
    finally:
        _work = before


@cache
def device() -> torch.device:
    """Returns the pretended device; registers it with torch at the first call of the process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module(), hook=_Hook())
    library: Any = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]  # torch does not annotate it
    library.fallback(_dispatched, "PrivateUse1")
    _kept.append(library)
    return torch.device(NAME, 0)


_kept: list[Any] = []


class _Hook(_DummyPrivateUse1Hook):
    """Other tests of the process find no accelerator."""

    def is_available(self) -> bool:
        return False


class _Module(_DummyBackendModule):
    """As _Hook, for torch.accelerator."""

    def is_available(self) -> bool:
        return False


def host_generator(_device: Any = None) -> torch.Generator:
    """Stands for torch.Generator, of which torch has none for this device."""
    return _Generator()


_Generator = torch.Generator


def _place() -> str:
    """Returns the innermost function of steering or transformers that is running, as `folder/file.py:Class.function`."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        for part in PLACES:
            if part in code.co_filename and not code.co_filename.endswith(TRANSPARENT):
                file = (
                    code.co_filename.rpartition(part)[2] if part == "/transformers/" else _in_steering(code.co_filename)
                )
                return f"{file}:{code.co_qualname}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def _in_steering(file: str) -> str:
    parts = Path(file).parts
    return "/".join(parts[len(parts) - 1 - parts[::-1].index("steering") :])


def _note_wait() -> None:
    _work.waits[_place()] += 1


def _dispatched(func: Any, *args: Any, **kwargs: Any) -> Any:
    name = func._schema.name.partition("::")[2]
    _work.operators.add(f"{name}.{func._overloadname}")
    return _run(func, args, kwargs, name=name, pointwise=torch.Tag.pointwise in func.tags)


def _run(func: Callable[..., Any], args: Any, kwargs: dict[str, Any], *, name: str, pointwise: bool) -> Any:
    if name in INDEXING and any(isinstance(one, torch.Tensor) and not isinstance(one, Pretended) for one in args[1]):
        _work.uploads[_place()] += 1
        _note_wait()
        args = (
            args[0],
            _mapped(list(args[1]), lambda one: one if isinstance(one, Pretended) else Pretended(one)),
            *args[2:],
        )
    _refuse_mixed(name, _tensors_in([*args, *kwargs.values()]), pointwise=pointwise)
    target = kwargs.get("device")
    to_host = target is not None and torch.device(target).type == "cpu"
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    _note(func, name, args, kwargs, to_host=to_host)
    result = _on_host(func, name, _mapped(args, _host_of), {key: _mapped(one, _host_of) for key, one in kwargs.items()})
    if to_host and name == "_to_copy":
        return result
    if name in ("copy_", "set_") or (name.endswith("_") and not name.startswith("__")):
        return args[0]
    if "out" in kwargs:
        return kwargs["out"]
    return _mapped(result, Pretended)


def _host_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.host if isinstance(tensor, Pretended) else tensor


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Changes the tensors of an argument or a result, which may be in lists."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)([_mapped(one, change) for one in value]) if type(value) in (list, tuple) else value


def _tensors_in(values: list[Any]) -> list[torch.Tensor]:
    found = [one for one in values if isinstance(one, torch.Tensor)]
    return found + [one for value in values if type(value) in (list, tuple) for one in _tensors_in(list(value))]


def _on_host(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    if (
        name == "histc" and not args[0].is_floating_point()
    ):  # an accelerator's takes integers, for which the CPU has none
        return torch.histc(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _refuse_mixed(name: str, tensors: list[torch.Tensor], *, pointwise: bool) -> None:
    host = [one for one in tensors if not isinstance(one, Pretended)]
    if not host or len(host) == len(tensors) or name in MIXING:
        return
    if (pointwise or name in SCALARS) and all(one.dim() == 0 for one in host):
        return
    shapes = ", ".join(str(tuple(one.shape)) for one in host)
    raise RuntimeError(f"{name}: expected all tensors to be on the pretended device, found {shapes} on the CPU")


def _note(func: Any, name: str, args: Any, kwargs: Any, *, to_host: bool) -> None:
    """Adds what an operation asks of the device."""
    if name in MIXING:
        source = args[1] if name == "copy_" else args[0]
        into_host = to_host if name == "_to_copy" else not isinstance(args[0], Pretended)
        blocking = not (args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking", False))
        if into_host or not isinstance(source, Pretended):
            if not into_host:
                _work.uploads[_place()] += 1
            if blocking or into_host:
                _work.waits[_place()] += 1
            return
    waiting = name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None)
    if name in INDEXING:
        masks = [one for one in args[1] if one is not None and one.dtype in (torch.bool, torch.uint8)]
        filled = name != "index" and args[2].dim() == 0  # becomes masked_fill
        waiting = bool(masks) and not filled
    if waiting:
        _work.waits[_place()] += 1
    schema = getattr(func, "_schema", None)
    is_view = schema is not None and any(
        one.alias_info is not None and not one.alias_info.is_write for one in schema.returns
    )
    if not is_view and name not in FREE and name != "_local_scalar_dense":
        _work.launches[name] += 1
