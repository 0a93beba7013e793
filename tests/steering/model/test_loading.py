"""load: folders, GGUF files and hub ids; what is refused; fingerprints; devices and dtypes."""

import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time

import pytest
import torch
from accelerate import infer_auto_device_map, init_empty_weights
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.errors import ModelLoadFailed, OutOfMemory, UnsupportedModel
from steering.model.cache_folder import ABANDONED, CONVERTING
from steering.model.conversion import converted as convert
from steering.model.fingerprint import fingerprint_of
from steering.model.loading import LoadedModel, cast_parameters, load, opened, placement, refuse_offloading
from steering.model.memory_plan import MemoryPlan
from tests.architectures.configurations import tiny
from tests.families import D_MODEL, EOS, FAMILIES, LAYERS, LLAMA_LIKE, VOCABULARY, build
from tests.steering.model.tiny_gguf import write_tiny_gguf

IDS = torch.arange(8)[None]


def load_here(source: Path | str, cache: Path, dtype: str = "float32") -> LoadedModel:
    return load(str(source), cache_dir=cache, device="cpu", dtype=dtype)


def test_a_folder_is_loaded_as_it_was_saved(tiny_folder: Path, tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    lines: list[str] = []
    loaded = load(str(tiny_folder), cache_dir=tmp_path, device="cpu", dtype="float32", report=lines.append)
    assert torch.equal(loaded.model(IDS).logits, tiny_model(IDS).logits)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert lines == ["Loading tiny-llama on cpu in float32: 0.2 MB of weights"]
    info = loaded.info
    assert (info.name, info.architecture) == ("tiny-llama", "LlamaForCausalLM")
    assert (info.d_model, info.layer_count, info.vocab_size) == (D_MODEL, LAYERS, VOCABULARY)
    assert (info.context_length, info.dtype, info.device) == (256, "float32", "cpu")
    assert info.parameter_count == sum(parameter.numel() for parameter in tiny_model.parameters())
    assert info.chat_template
    assert info.typical_norms == ()
    assert info.revision is None
    assert loaded.tokenizer.eos_ids == {EOS}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_fingerprint_is_that_of_the_weights_in_any_dtype(
    tiny_folder: Path, tiny_model: PreTrainedModel, tmp_path: Path, dtype: str
) -> None:
    loaded = load_here(tiny_folder, tmp_path, dtype=dtype)
    assert loaded.info.dtype == dtype
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {getattr(torch, dtype)}
    assert {buffer.dtype for buffer in loaded.model.buffers()} == {torch.float32}
    assert loaded.info.fingerprint == fingerprint_of(tiny_model)
    assert loaded.model(IDS).logits.isfinite().all()


def test_another_training_has_another_fingerprint(tiny_model: PreTrainedModel) -> None:
    fingerprints = {fingerprint_of(FAMILIES[family]()) for family in FAMILIES}
    assert len(fingerprints) == len(FAMILIES)
    assert fingerprint_of(build("LlamaForCausalLM", seed=1, **LLAMA_LIKE)) not in fingerprints
    assert fingerprint_of(tiny_model) in fingerprints


def test_several_eos_ids_of_the_model_all_end_an_answer(
    tiny_model: PreTrainedModel, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_model.generation_config.eos_token_id = [256, 261]
    assert opened(tiny_model, hf_byte_tokenizer, name="tiny").tokenizer.eos_ids == {256, 261, EOS}


def test_a_model_in_memory_is_opened_as_a_loaded_one(
    tiny_loaded: LoadedModel, tiny_folder: Path, tmp_path: Path
) -> None:
    loaded = load_here(tiny_folder, tmp_path)
    assert loaded.info == tiny_loaded.info


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedModel, list[str]]:
    """A GGUF file of the tiny model with a folder `cache` beside it, the model that was loaded from it, and what was reported."""
    gguf, lines = tmp_path_factory.mktemp("gguf") / "Tiny.gguf", list[str]()
    write_tiny_gguf(FAMILIES["llama"](), gguf)
    loaded = load(str(gguf), cache_dir=gguf.parent / "cache", device="cpu", dtype="float32", report=lines.append)
    return gguf, loaded, lines


def test_a_gguf_file_is_converted_once_and_exactly(
    converted: tuple[Path, LoadedModel, list[str]], tiny_model: PreTrainedModel
) -> None:
    gguf, first, lines = converted
    cache = gguf.parent / "cache"
    again = load(str(gguf), cache_dir=cache, device="cpu", dtype="float32", report=lines.append)
    for loaded in (first, again):
        assert torch.equal(loaded.model(IDS).logits, tiny_model(IDS).logits)
        assert loaded.info.fingerprint == fingerprint_of(tiny_model)
        assert loaded.info.chat_template
        assert loaded.tokenizer.eos_ids == {EOS}
    assert [line for line in lines if "Converting" in line] == ["Converting Tiny.gguf to float32 safetensors, once"]
    assert not list(cache.glob(".*"))


def test_what_a_killed_conversion_left_is_removed_at_a_later_start(
    converted: tuple[Path, LoadedModel, list[str]], tmp_path: Path
) -> None:
    folder = shutil.copytree(converted[0].parent, tmp_path / "copy")
    cache = folder / "cache"
    old, young = cache / f"{CONVERTING}old", cache / f"{CONVERTING}young"
    for path in (old, young):
        (path / "model").mkdir(parents=True)
    os.utime(old, (time() - 2 * ABANDONED,) * 2)
    load_here(folder / "Tiny.gguf", cache)
    assert (old.exists(), young.exists()) == (False, True)


def test_smollm_splits_digits_off_first(converted: tuple[Path, LoadedModel, list[str]]) -> None:
    """Two line ends before a digit are the one token that two line ends are."""
    loaded = converted[1]
    line_ends = loaded.tokenizer.encode("a\n\n2")[2:-1]
    assert line_ends == (263,)
    assert loaded.tokenizer.decode(line_ends) == "\n\n"


def test_a_changed_gguf_file_is_converted_again(converted: tuple[Path, LoadedModel, list[str]], tmp_path: Path) -> None:
    folder = shutil.copytree(converted[0].parent, tmp_path / "copy")
    gguf = folder / "Tiny.gguf"
    first = load_here(gguf, folder / "cache").info.fingerprint
    write_tiny_gguf(build("LlamaForCausalLM", seed=1, **LLAMA_LIKE), gguf)
    os.utime(gguf, ns=(0, 0))
    assert load_here(gguf, folder / "cache").info.fingerprint != first


def test_a_gguf_file_with_a_bias_that_no_module_has_is_refused(tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    write_tiny_gguf(
        tiny_model, tmp_path / "tiny.gguf", biases={"blk.0.attn_q.bias": 8, "blk.0.attn_output.bias": D_MODEL}
    )
    with pytest.raises(ModelLoadFailed, match=r"LlamaForCausalLM of transformers does not read blk\.0\.attn_q\.bias"):
        load_here(tmp_path / "tiny.gguf", tmp_path / "cache")


def test_a_damaged_gguf_file_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    gguf = tmp_path / "damaged.gguf"
    gguf.write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(200))
    with pytest.raises(ModelLoadFailed, match="could not be converted"):
        load_here(gguf, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


RUN = """
import sys
from pathlib import Path
from steering.model.loading import load
loaded = load(sys.argv[1], cache_dir=Path(sys.argv[2]), device="cpu", dtype="float32")
print(loaded.info.fingerprint, loaded.info.revision)
"""


def start(source: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", RUN, source, str(cache)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_may_convert_at_once(tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    gguf, cache, lines = tmp_path / "tiny.gguf", tmp_path / "cache", list[str]()
    write_tiny_gguf(tiny_model, gguf)
    with ThreadPoolExecutor(2) as threads:  # each conversion is a process of its own
        folders = list(threads.map(lambda _: convert(gguf, torch.float32, cache, lines.append), range(2)))
    assert len(lines) == 2, "one had ended when the other began"
    assert [path for path in cache.iterdir() if path.is_dir()] == [folders[0]] == [folders[1]]
    assert load_here(gguf, cache).info.fingerprint == fingerprint_of(tiny_model)


def test_a_hub_id_is_found_offline_and_pinned(tiny_folder: Path, tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    process = start("someone/tiny", tmp_path / "cache", HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_OFFLINE="1")
    output, errors = process.communicate(timeout=280)
    assert output.split() == [fingerprint_of(tiny_model), commit], errors


@pytest.mark.parametrize("source", ["no/such/folder", "", "../x", "https://example.org/model", "missing.gguf", "a b"])
def test_what_is_no_model_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # files outside the project's folder are not read
    with pytest.raises(ModelLoadFailed, match="no folder"):
        load_here(source or "?", tmp_path)


def test_a_hub_id_that_is_not_in_the_cache_is_refused_offline(tmp_path: Path) -> None:
    with pytest.raises(
        ModelLoadFailed,
        match=r"^nobody/nothing is not complete in the .* cache \(HF_HOME\), and HF_HUB_OFFLINE forbids",
    ) as raised:
        load_here("nobody/nothing", tmp_path)
    assert raised.value.__cause__ is None


class Hub(BaseHTTPRequestHandler):
    """A hub that refuses every model by its name."""

    def do_GET(self) -> None:  # the name is http.server's
        status, code = next((found for name, found in REFUSALS.items() if name in self.path), (404, ""))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Writes nothing."""


REFUSALS = {
    "someone/gated": (403, "GatedRepo"),
    "someone/private": (401, "RepoNotFound"),
    "someone/tiny": (404, "RevisionNotFound"),
    "someone/broken": (500, ""),
}
REASONS = {
    "someone/gated": "accept its licence at https://huggingface.co/someone/gated, and set HF_TOKEN",
    "someone/private": "is private: check the name, or set HF_TOKEN",
    "someone/tiny": "has no revision 'v9'",
    "someone/broken": "is not complete in the Hugging Face cache",
}
DOWNLOAD = """
import sys
from pathlib import Path
from steering.errors import ModelLoadFailed
from steering.model.loading import load
for source in sys.argv[2:]:
    try:
        load(source, cache_dir=Path(sys.argv[1]), device="cpu", revision="v9")
    except ModelLoadFailed as error:
        print(error.message)
"""


def test_a_model_that_cannot_be_downloaded_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        variables = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path),
        }
        command = [sys.executable, "-c", DOWNLOAD, str(tmp_path), *REFUSALS]
        done = subprocess.run(
            command, env=os.environ | variables, capture_output=True, text=True, timeout=280, check=True
        )
        hub.shutdown()
        thread.join()
    lines = done.stdout.splitlines()
    assert len(lines) == len(REFUSALS)
    for (source, reason), line in zip(REASONS.items(), lines, strict=True):
        assert line.startswith(source)
        assert reason in line


def rewrite_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_pickled_weights_are_not_read(tiny_folder: Path, tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    (tiny_folder / "model.safetensors").unlink()
    torch.save(tiny_model.state_dict(), tiny_folder / "pytorch_model.bin")
    with pytest.raises(ModelLoadFailed, match="safetensors"):
        load_here(tiny_folder, tmp_path)


def test_code_of_the_models_own_is_not_run(tiny_folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    (tiny_folder / "own.py").write_text(f"open({str(proof)!r}, 'w')\n")
    rewrite_config(
        tiny_folder, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.M"}
    )
    with pytest.raises(ModelLoadFailed, match="trust_remote_code"):
        load_here(tiny_folder, tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        (
            "T5ForConditionalGeneration",
            {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4},
            "encoder",
        ),
        ("MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 3}, "recurrent state|linear_attention"),
        ("RwkvForCausalLM", {"hidden_size": 32, "num_hidden_layers": 3}, "recurrent state|no key-value cache"),
        ("ViTModel", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}, "not a language model"),
    ],
)
def test_other_kinds_of_model_are_refused_by_name(
    family: str, settings: dict[str, int], reason: str, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    build(family, **settings).save_pretrained(folder)
    hf_byte_tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").unlink()  # before weights are read
    with pytest.raises(UnsupportedModel, match=reason) as refusal:
        load_here(folder, tmp_path)
    assert family in refusal.value.message


def test_a_folder_without_a_tokenizer_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    for file in tiny_folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ModelLoadFailed):
        load_here(tiny_folder, tmp_path)


def test_only_ordinary_floating_parameters_are_cast(tiny_model: PreTrainedModel) -> None:
    packed = torch.arange(8, dtype=torch.uint8)
    tiny_model.register_parameter("packed", torch.nn.Parameter(packed, requires_grad=False))
    eight_bit = torch.ones(8).to(torch.float8_e4m3fn)
    tiny_model.register_parameter("eight_bit", torch.nn.Parameter(eight_bit, requires_grad=False))
    cast_parameters(tiny_model, torch.float16)
    assert torch.equal(tiny_model.get_parameter("packed"), packed)
    assert tiny_model.get_parameter("eight_bit").dtype == torch.float8_e4m3fn
    assert tiny_model.model.embed_tokens.weight.dtype == torch.float16
    assert {buffer.dtype for buffer in tiny_model.buffers()} == {torch.float32}


def test_packed_weights_in_buffers_are_part_of_the_fingerprint(tiny_model: PreTrainedModel) -> None:
    fingerprints = []
    for seed in range(2):
        weights = torch.randint(0, 255, (64,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
        tiny_model.register_buffer("qweight", weights)
        fingerprints.append(fingerprint_of(tiny_model))
    tiny_model.register_buffer("qweight", weights, persistent=False)
    assert len({*fingerprints, fingerprint_of(tiny_model)}) == 3
    assert fingerprint_of(tiny_model) == fingerprint_of(FAMILIES["llama"]())


def test_of_a_model_that_reads_images_the_part_that_writes_text_is_loaded(
    hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny("LlavaForConditionalGeneration")
    model.save_pretrained(tmp_path / "llava")
    hf_byte_tokenizer.save_pretrained(tmp_path / "llava")
    loaded = load_here(tmp_path / "llava", tmp_path)
    assert loaded.layout.blocks is loaded.model.model.language_model.layers
    assert torch.equal(loaded.model(IDS).logits, model(IDS).logits)


def test_a_device_map_on_a_cpu_has_one_device(tiny_folder: Path, tiny_model: PreTrainedModel, tmp_path: Path) -> None:
    loaded = load(str(tiny_folder), cache_dir=tmp_path, device="cpu", dtype="float32", device_map="auto")
    assert torch.equal(loaded.model(IDS).logits, tiny_model(IDS).logits)
    assert loaded.info.device == "cpu"


def test_a_spread_model_leaves_room_for_keys_and_values_on_each_device() -> None:
    plan = MemoryPlan(weights=0, cache=800)
    devices = [torch.device("cuda", index) for index in range(2)]
    assert placement({devices[0]: 2000, devices[1]: 300}, plan) == {"device_map": "auto", "max_memory": {0: 1600, 1: 0}}
    assert placement({devices[1]: 2000}, plan) == {"device_map": {"": devices[1]}}
    assert placement({torch.device("cpu"): 2000}, plan) == {}


def test_accelerate_spreads_the_blocks_over_the_room_it_is_given(tiny_model: PreTrainedModel) -> None:
    block = sum(parameter.numel() * 4 for parameter in tiny_model.model.layers[0].parameters())
    room = placement({torch.device("cuda", index): 10 * block for index in range(2)}, MemoryPlan(0, 12 * block))
    with init_empty_weights():
        empty = type(tiny_model)(tiny_model.config)
    found = infer_auto_device_map(empty, room["max_memory"], no_split_module_classes=tiny_model._no_split_modules)
    assert set(found.values()) == {0, 1}
    assert {name for name in found if "layers" in name} == {f"model.layers.{layer}" for layer in range(LAYERS)}


def test_blocks_that_would_be_left_on_the_cpu_are_refused(tiny_model: PreTrainedModel) -> None:
    tiny_model.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": 1}
    refuse_offloading("tiny", tiny_model)
    tiny_model.hf_device_map |= {"model.layers.1": "cpu", "model.layers.2": "disk"}
    with pytest.raises(
        OutOfMemory, match=r"tiny does not fit the devices: 2 of its parts are left, model.layers.1 first"
    ):
        refuse_offloading("tiny", tiny_model)
