"""What holds for all tests: the checks of shapes, the environment, and the order. The fixtures are in tests/fixtures.py."""

import gc
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

import tests.shape_checks
from app.core.process_settings import SPIN_COUNT

REPOSITORY = Path(__file__).resolve().parent.parent
TYPED = ("cards.py", "conditions", "extraction", "operations", "projection", "rowwise.py", "vectors.py")
SHAPED = (
    *(f"engine/{name}.py" for name in ("api", "capabilities", "captures", "norms", "prompts")),
    *(
        f"engine/transformers/{name}"
        for name in (
            "sampling.py",
            "training.py",
            "block_pool.py",
            "paged_cache.py",
            "attention.py",
            "request.py",
            "loop.py",
            "runner.py",
            "unembedding.py",
            "decode_graphs.py",
        )
    ),
    "injection",
    "lab",
    "model",
    "plan",
    "workflows",
)
GPU_TESTS = REPOSITORY / "tests" / "gpu"
# `make test-vllm` has an environment of its own, and its target `test-triton` another mode of Triton
collect_ignore = [
    *([] if find_spec("vllm") is not None else ["vllm"]),
    *([] if os.environ.get("TRITON_INTERPRET") else ["triton"]),
]
TRACED = ("model/hook_points.py", "model/hooks.py", "model/layout.py", "injection/kernel.py")
EMBEDDED = "tests/embedded/"
LONGEST = (
    "load/test_soak.py",
    "steering/engine/cpu/test_compiled.py",
    "steering/engine/test_bfloat16.py",
    "steering/engine/loop/test_loop_under_pressure.py",
    "app/core/test_openapi_cases.py",
    "load",
    "embedded",
    "playground",
)
"""What is run first, so that `make test` does not end with one worker in a long file and another without work."""


def modules_of(*packages: str) -> list[str]:
    """Returns the modules of some packages. Left out: `__init__` files, whose loaders return protocols, and functions of
    hooks, which torch.export traces, and those that Triton compiles."""
    steering = REPOSITORY / "steering"
    missing = [name for name in packages if not (steering / name).exists()]
    assert not missing, f"steering has no {', '.join(missing)}"
    files = [file for name in packages for file in [steering / name, *(steering / name).rglob("*.py")]]
    paths = [file.relative_to(steering) for file in files if file.suffix == ".py" and file.name != "__init__.py"]
    kept = [path for path in paths if not path.as_posix().startswith(TRACED)]
    return [".".join(("steering", *path.with_suffix("").parts)) for path in kept]


# Pure functions of tensors are checked at every call, types included; the rest of the library by its tensors' shapes.
jaxtyping.jaxtyped = tests.shape_checks.jaxtyped  # type: ignore[assignment]
jaxtyping.install_import_hook(modules_of(*TYPED), "beartype.beartype")
jaxtyping.install_import_hook(modules_of(*SHAPED), "tests.shape_checks.check_shapes")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Tests are independent of the developer's shell: settings of a server, a proxy that would be used for loopback
# addresses, colours in output that is compared.
ALLOWED = {"STEERING_CACHE_DIR"}
for variable in [name for name in os.environ if name.startswith("STEERING_") and name not in ALLOWED]:
    del os.environ[variable]
direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(filter(None, [direct, "127.0.0.1,localhost"]))
os.environ.pop("FORCE_COLOR", None)

# Bytecode is kept: otherwise every worker, and every server that a test starts, compiles all modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# As in a server, whose thread that waits for another does not keep it off a processor: three workers share two.
os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
# A full collection passes over everything that is imported, in 0.3 s, and by default follows a server that stops: what
# `gc.freeze` hid from it has become young again.
gc.set_threshold(5_000, 10, 20)


def pytest_configure(config: pytest.Config) -> None:
    """Loads the fixtures, and torch with them, but not in the process that hands tests out to xdist's workers."""
    if getattr(config.option, "dist", "no") == "no" or config.option.collectonly:
        config.pluginmanager.import_plugin("tests.fixtures")


@pytest.hookimpl(optionalhook=True)  # of xdist, which vLLM's environment has not
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distributes the tests by file, but has one worker run all of tests/embedded, whose model, vectors and server are for a worker."""
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # noqa: PLC0415 - see above

    if config.getvalue("dist") != "loadfile":
        return None
    scheduling = LoadFileScheduling(config, log)
    by_file = scheduling._split_scope
    scheduling._split_scope = lambda nodeid: EMBEDDED if nodeid.startswith(EMBEDDED) else by_file(nodeid)
    return scheduling
