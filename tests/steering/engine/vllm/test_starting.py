"""What is refused before vLLM is started."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from steering.engine import ENGINES, installed_engines, open_engine
from steering.engine.options import EngineOptions
from steering.engine.vllm.description import KNOWN, check_version
from steering.errors import InvalidRequest, ModelLoadFailed


def test_known_versions_start_and_others_only_when_the_operator_says_so() -> None:
    for release in KNOWN:
        check_version(f"{release}.1+cpu", untested=False)
    for version in ("0.31.0", "0.33.0+cpu", "1.0.0", "0.320.0"):
        with pytest.raises(ModelLoadFailed, match="--vllm-untested"):
            check_version(version, untested=False)
        check_version(version, untested=True)


def test_without_vllm_its_engine_is_refused_by_name(tmp_path: Path) -> None:
    assert "vllm" in ENGINES
    assert ("vllm" in installed_engines()) == (find_spec("vllm") is not None)
    if "vllm" not in installed_engines():
        with pytest.raises(InvalidRequest, match="make setup-vllm"):
            open_engine("vllm", EngineOptions("any", tmp_path))


def test_the_transformers_engine_refuses_several_processes(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="one process"):
        open_engine("transformers", EngineOptions("any", tmp_path, tensor_parallel_size=2))
