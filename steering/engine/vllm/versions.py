"""The versions of vLLM that this engine was written for. It reads what vLLM calls internal, which a release may change."""

from steering.errors import ModelLoadFailed

PLUGIN_VERSION = "1"
"""Part of the key of vLLM's compiled graphs, which do not know of hooks otherwise: a graph compiled without them, or with
other ones, would be loaded and nothing steered. To be raised with every change of what the hooks call."""

KNOWN: dict[str, str] = {"0.32": "model runner V1, run on the CPU build"}
"""Release -> what was run with it."""


def check_version(version: str, *, untested: bool) -> None:
    """Raises ModelLoadFailed for a release that is not in the table, unless the operator accepts it."""
    release = ".".join(version.split("+", maxsplit=1)[0].split(".")[:2])
    if release not in KNOWN and not untested:
        raise ModelLoadFailed(
            f"vLLM {version} is not among the versions that this engine was tested with ({', '.join(KNOWN)}); "
            "install one of them, or start with --vllm-untested"
        )
