"""Settings: every environment variable of the server (prefix STEERING_), and every limit that callers can reach."""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from steering.namespaces import NAMESPACE_PATTERN, SHARED

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{8,512}")
_OTHER_LIMITS = ("chat_max_tokens", "contended_running", "memory_megabytes", "request_seconds", "dose_bound")
SCOPES = ("generate", "read", "write", "metrics", "admin")


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One key of the environment or of a key file: `key`, `key:read+generate`, `key:read+generate@team-a` or `key@team-a`."""

    secret: str = field(repr=False)
    scopes: tuple[str, ...]
    namespace: str

    @classmethod
    def parse(cls, text: str) -> "KeyEntry":
        """Reads an entry; `check_entries` says what is wrong with one."""
        rest, _, namespace = text.partition("@")
        secret, colon, scopes = rest.partition(":")
        return cls(secret, tuple(scopes.split("+")) if colon else SCOPES, namespace if "@" in text else SHARED)


def check_entries(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the entries. Raises ValueError for text that is not a KeyEntry. Keys are never repeated in messages."""
    for position, text in enumerate(entries, 1):
        entry = KeyEntry.parse(text)
        if not _TOKEN.fullmatch(entry.secret):
            raise ValueError(f"key {position} must be 8 to 512 of A-Z a-z 0-9 . _ ~ + / = -")
        unknown = set(entry.scopes) - set(SCOPES)
        if unknown:
            raise ValueError(f"key {position} has unknown scopes {sorted(unknown)}; known: {SCOPES}")
        if not re.fullmatch(NAMESPACE_PATTERN, entry.namespace):
            raise ValueError(f"key {position} has a namespace that is no name: {NAMESPACE_PATTERN}")
    return entries


def key_entries(path: Path) -> tuple[str, ...]:
    """Reads a key file: one entry a line, `#` begins a comment. Raises OSError, ValueError."""
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not entries:
        raise ValueError("the file has no key")
    return check_entries(entries)


Positive = Annotated[int, Field(ge=1)]
MAX_DAYS = 36_500
"""A century. An age of more than about 2,000 years would lead to a date before the year 1, which Python cannot represent."""
Days = Annotated[int, Field(ge=1, le=MAX_DAYS)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """Settings of an operator. Read from the environment (STEERING_PORT=8001) or given in code."""

    model_config = SettingsConfigDict(
        env_prefix="STEERING_", extra="ignore", frozen=True, protected_namespaces=(), hide_input_in_errors=True,
        use_attribute_docstrings=True,  # a description that does not fit the line of its field stands below it
    )  # fmt: skip

    # What is served
    model: str = "smollm2-135m-instruct"
    """the embedded model, a Hugging Face id, a local folder, or a GGUF path"""
    model_revision: str | None = Field(None, description="pinned revision of a Hugging Face id")
    engine: str = Field("transformers", description="`transformers`, or `vllm` where vLLM is installed")
    vllm_untested: bool = Field(False, description="start the vllm engine with a version of vLLM that was not tested")
    tensor_parallel_size: Positive = Field(1, description="processes that share each layer (vllm engine)")
    pipeline_parallel_size: Positive = Field(1, description="processes that share the layers (vllm engine)")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps, ...")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`float32`, `bfloat16` or `float16`; auto is bfloat16 where the hardware or our kernels multiply it"""
    device_map: Literal["auto"] | None = None
    """auto spreads the blocks of a model over all GPUs (transformers engine)"""
    quantization: Literal["bitsandbytes-8bit", "bitsandbytes-4bit", "torchao-int8"] | None = None
    """`bitsandbytes-8bit`, `bitsandbytes-4bit` or `torchao-int8`: quantizes plain weights while they are loaded, by that package (transformers engine)"""
    weights: Literal["auto", "dtype", "int8", "gguf"] = "auto"
    """`dtype`, `gguf` or `int8`: how our kernels keep the weights of linear layers: in the dtype, as the blocks of a GGUF file, or rounded to 8-bit blocks; auto is, for a GGUF file, its blocks, and the dtype beside them where memory allows, else `dtype` (transformers engine, CPU)"""
    cache_dir: Path = Field(Path.home() / ".cache" / "steering-server", description="where converted models are stored")
    database: str = Field("sqlite:///steering.sqlite3", repr=False)
    """where vectors, profiles and jobs are stored"""

    # Network and access
    host: str = Field("127.0.0.1", description="address to listen on; other than loopback needs a key")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port to listen on; 0 takes a free one")
    api_keys: Annotated[CommaSeparated, AfterValidator(check_entries)] = Field((), repr=False)
    """comma-separated; `key` has every scope, `key:read+generate` these two; `key:read@team-a` is of a namespace"""
    api_keys_file: Path | None = None
    """a file of such entries, one a line; it is read again when it changes"""
    output_days: Days = Field(7, description="age at which results of batches are deleted")
    audit_days: Days = Field(90, description="age at which entries of the audit log are deleted")
    job_days: Days = Field(30, description="age at which jobs that have ended are deleted")
    link_days: Days = Field(365, description="age at which saved links are deleted")
    allowed_hosts: CommaSeparated = ()
    """comma-separated names accepted in Host, in addition to the loopback names on a loopback address; on others, /health and /metrics are answered under any name"""
    client_header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] | None = None
    """header from which the log takes the address of the client, such as `X-Forwarded-For`: its last address. Only where every request comes through a proxy that writes it"""
    openapi: bool = Field(True, description="serve /openapi.json")
    traces: bool = False
    """send spans of each request and its answers by OTLP, to where `OTEL_EXPORTER_OTLP_ENDPOINT` says; needs the extra `otel`"""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """the least severe level that is logged"""

    # Running requests
    max_running: Positive = Field(64, description="rows in the batch")
    contended_running: Positive = Field(8, description="rows of a key while other keys have requests")
    max_waiting: Positive = Field(256, description="rows waiting for the batch; one more is answered 429")
    prefill_tokens: Positive = 2048
    """most prompt tokens computed between two tokens of running streams, never more than take 0.25 s"""
    cache_megabytes: Positive | Literal["auto"] = "auto"
    """memory for keys and values, allocated once; `auto`: a share of what is free when the model is loaded"""
    pretouch_megabytes: Annotated[int, Field(ge=0)] = 512
    """how much of that memory an idle server writes ahead of use on a CPU"""
    adaptive_threads: bool = True
    """use fewer threads where other processes occupy processors (CPU, in compiled passes whose linear layers use our kernels)"""
    share_prefixes: bool = Field(True, description="share keys and values of prompts of one key that begin alike")
    compiled: bool | Literal["auto"] = "auto"
    """compile passes in the background (CPU): `auto` (models up to a billion parameters), `true` or `false`"""
    kernels: bool = True
    """use our C++ kernels on CPUs with AVX2 or AVX512_BF16; engine `vllm`: steer behind its layers in C++ (CPU); engine `transformers` on a GPU: edits by our Triton kernel"""
    cuda_graphs: bool = True
    """on a GPU, replay decode passes from CUDA graphs; engine `vllm`: edits are part of its graphs"""
    self_test: bool = True
    """at the start compare short answers with the model's own forward pass (engine `transformers`); takes about ten passes"""
    memory_megabytes: Positive = 2048
    """memory that running requests may use for bodies, activations, logits and files"""
    max_connections: Positive = Field(1000, description="open connections; idle ones are closed for new ones")
    watchdog_seconds: Seconds = 120.0
    """a forward pass that takes longer ends the process with exit code 3"""
    request_seconds: Seconds = Field(600.0, description="longest life of one request")
    body_seconds: Seconds = Field(30.0, description="longest time a body may take to arrive")
    keepalive_seconds: Seconds = Field(15.0, description="pause after which a stream sends a comment")
    stall_seconds: Seconds = Field(60.0, description="a reader that takes nothing for so long loses its connection")
    drain_seconds: Seconds = Field(30.0, description="time that running requests get after SIGTERM")
    drain_delay_seconds: Annotated[float, Field(ge=0, le=600)] = 0.0
    """after SIGTERM the server is not ready, but accepts requests for so long: a load balancer has time to notice"""
    lease_seconds: Annotated[float, Field(ge=1, le=3600)] = 15.0
    """a server that does not reach the database for so long is taken for dead: its jobs are reported as interrupted"""
    max_jobs: Positive = Field(4, description="jobs running at once")
    max_queued_jobs: Positive = Field(64, description="jobs waiting; one more is answered 429")

    dictionaries: CommaSeparated = ()
    """comma-separated folders in SAELens format: sparse autoencoders of the model, to search"""
    scorer_model: str | None = None
    """a second model, named like STEERING_MODEL, that also reads the answers of deployment reports, and whose vectors can be transferred; in memory once, while jobs use it"""
    # The judge of evaluations
    judge_base_url: str | None = None
    """an OpenAI-compatible endpoint (`https://host/v1`) that evaluations may name as their judge"""
    judge_model: str | None = Field(None, description="the model requested there; needed with an address")
    judge_api_key: str | None = Field(None, repr=False, description="the key sent there")
    judge_seconds: Seconds = Field(60.0, description="longest time one request to it may take")

    # Limits of one request
    max_body_bytes: Positive = Field(2_000_000, description="largest body")
    max_upload_bytes: Positive = Field(64_000_000, description="largest body where vectors or examples are sent")
    max_json_depth: Positive = Field(64, description="deepest nesting of a body")
    max_body_elements: Positive = Field(200_000, description="JSON values of a body")
    max_upload_elements: Positive = 1_000_000
    """JSON values of a body with vectors or examples; of these `max_body_elements` may be lists or objects"""
    max_messages: Positive = Field(1_000, description="messages of a conversation")
    chat_max_tokens: Positive = 4_096
    """tokens of a chat completion that names no limit; it never has more than fit the model's context"""
    answers_only: bool = True
    """in chats with tools, or of a model that thinks, steering without a `scope` acts on answers alone; `false`: on every token"""
    max_n: Positive = Field(8, description="answers to one prompt")
    max_prompts: Positive = Field(16, description="prompts of a text completion")
    max_stops: Positive = Field(4, description="stop strings")
    max_stop_characters: Positive = Field(64, description="characters of a stop string")
    max_top_logprobs: Positive = Field(20, description="alternatives listed for each token")
    max_interventions: Annotated[int, Field(ge=1, le=64)] = Field(32, description="interventions of a request")
    max_readouts: Positive = Field(8, description="vectors measured at every token")
    max_arms: Positive = Field(8, description="arms of a comparison")
    max_pairs: Positive = Field(10_000, description="pairs or texts of an extraction")
    max_texts: Positive = Field(2_000, description="texts of a readout or a map")
    max_predictions: Positive = Field(50_000, description="predictions of a logit lens (tokens x layers x top_k)")
    max_activations: Positive = Field(64_000_000, description="numbers read from the model in one call")
    max_scored_tokens: Positive = 200_000
    """tokens that one scoring or tokenizing request reads; the prompt counts for each continuation"""
    max_links: Positive = Field(1_000, description="links that one key has saved")
    max_profiles: Positive = Field(1_000, description="profiles of a namespace")
    max_link_bytes: Positive = Field(64_000, description="state of a saved link, as JSON in ASCII")
    max_batch_requests: Positive = Field(10_000, description="requests of one batch")
    max_evaluation_answers: Positive = Field(10_000, description="answers that one evaluation generates")
    max_page: Annotated[int, Field(ge=1, le=200)] = Field(200, description="entries of a page of a list")
    dose_bound: Seconds = 0.2
    """relative dose of a request, summed over its layers, beyond which dose_action applies"""
    dose_action: Literal["off", "warn", "clamp", "refuse"] = "warn"
    """beyond the bound: `warn`, `clamp` the change at each token, `refuse` what is planned beyond it (and clamp the rest), or `off`"""

    @field_validator("dictionaries")
    @classmethod
    def _dictionaries_have_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [Path(folder).name for folder in value]
        if "" in names or len(set(names)) < len(names):
            raise ValueError("a dictionary is named by the last part of its folder: the names must differ")
        return value

    @field_validator("api_keys_file")
    @classmethod
    def _file_has_keys(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                key_entries(value)
            except OSError as error:
                raise ValueError(f"the file cannot be read: {error.strerror}") from None
        return value

    @field_validator("judge_base_url")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        """Raises ValueError, also from `port` where that is no number."""
        if value is None:
            return None
        parts = urlsplit(value)
        plain = parts.username is None and parts.port != 0 and not parts.query and not parts.fragment
        if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
            raise ValueError("expected http(s)://host[:port][/path] without a user, a query or a fragment")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if (self.judge_base_url is None) != (self.judge_model is None):
            raise ValueError("judge_base_url and judge_model are set together or not at all")
        if not self.api_keys and self.api_keys_file is None and not self.loopback:
            reachable = f"host {self.host!r} is reachable from other machines and no key is set"
            raise ValueError(f"{reachable}: set STEERING_API_KEYS, or serve on 127.0.0.1")
        return self

    @property
    def loopback(self) -> bool:
        """Whether the server is bound to a loopback address, which is reachable from this machine only."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def limits(self) -> dict[str, int | float]:
        """Returns the limits that callers can reach, by name, as /v1/capabilities shows them: every `max_...`, and a few."""
        return {name: value for name, value in self if name.startswith("max_") or name in _OTHER_LIMITS}
