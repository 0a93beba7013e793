"""The commands of README and of the pages are run as they stand, and what they print or write is what the page says."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from app.cli.main import main
from steering.client import Client
from tests.app.running import running
from tests.docs.test_bodies import LAYERS
from tests.fakes import ScriptedEngine
from tests.scripted_model import SCRIPTED_MODEL

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGES = ["README.md", "docs/choosing.md", "docs/latent_space.md", "docs/report.md"]

SHOWN: dict[str, tuple[str, ...]] = {
    "extract": (r"formality@1", r"recommended: layer \d+", r"held-out AUROC [\d.]+ \(95 % interval"),
    "vectors show": (r"formality@1", r"recommended: layer \d+", rf"AUROC(.|\n)* {LAYERS - 1} +\d"),
    "sweep": (
        r"arm +answer",
        r"KL",
        r"perplexity",
        r"readout of the text, read again without\s+steering",
        r"steered_readout",
    ),
    "evaluate": (r"strength", r"perplexity", r"formality@2"),
    "map": (r"wrote map.html",),
    "card": (r"wrote card.html",),
    "lens": (r"layer +plain", rf" {LAYERS - 1} +\S+ +\d+ %"),
    "readout": (r"sentiment@1", r" W +[+-]\d", r"mean +[+-]\d"),
    "explain": (r"[a-z]+@\d|nothing stands out",),
    "clusters": (r"a good day", r"a bad day"),
    "activations": (r"activations.safetensors",),
    "report": (r"control +shift", r"utility +perplexity_ratio", r"robustness +retained.typos", r"seed 0", r"seed 1"),
}
"""Command -> regular expressions that its output matches."""
FILES = {
    "map.html": ("displeased",),
    "card.html": ("sentiment",),
    "report.html": ("control", "utility", "robustness"),
    "report.md": ("control", "utility", "robustness"),
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server on a scripted model with the layers of the embedded one, a vector and a profile that the pages name."""
    info = replace(SCRIPTED_MODEL, layer_count=LAYERS, typical_norms=(20.0,) * LAYERS)
    with running(ScriptedEngine(info=info)) as found:
        with Client(found) as client:
            sides = [[f"{word} {i}" for i in range(8)] for word in ("good", "bad")]
            client.extract_vector("sentiment", positive=sides[0], negative=sides[1])
            client.put_profile("cheerful", [{"vector": "sentiment", "strength": 0.5}])
        yield found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the commands name."""
    words = [("good", "pleased"), ("bad", "displeased")] * 6
    (tmp_path / "texts.csv").write_text(
        "text,label\n" + "".join(f"a {one} day {i},{label}\n" for i, (one, label) in enumerate(words))
    )
    (tmp_path / "texts.txt").write_text("".join(f"a {one} day {i}\n" for i, (one, _) in enumerate(words)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(page: str) -> list[list[str]]:
    """The arguments of each line `steer ...` in the blocks of a page, without the comment behind it."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if re.match(r"(\.venv/bin/)?steer ", line)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_shows_what_it_is_there_for(
    page: str, address: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = commands(page)
    assert found
    for arguments in found:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--url", address])
        out, err = capsys.readouterr()
        assert not ended.value.code, f"{arguments}: {err}"
        printed = re.sub("[│┃]", " ", out + err)
        expected = [words for command, words in SHOWN.items() if " ".join(arguments).startswith(command)]
        assert expected, f"state in SHOWN what {arguments} shows"
        for words in (word for one in expected for word in one):
            assert re.search(words, printed), f"{arguments} does not show {words!r}:\n{printed}"
        for option in ("--out", "--strengths"):
            if option in arguments:
                value = arguments[arguments.index(option) + 1]
                _check_file(folder / value) if option == "--out" else _check_arms(value, printed)


def _check_file(path: Path) -> None:
    """A page that a browser opens without a network, or a report in Markdown."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".html":
        assert content.startswith("<!doctype html>")
        assert not re.search(r"(src|href)=.https?:", content)
    assert all(word in content for word in FILES[path.name])


def _check_arms(strengths: str, printed: str) -> None:
    """A row per strength, 0 as `base`."""
    arms = ["base" if float(one) == 0.0 else f"{float(one):+g}" for one in strengths.split(",")]
    assert set(arms) <= set(re.findall(r"^ *(base|[+-][\d.]+) ", printed, flags=re.MULTILINE))


def test_the_file_of_activations_holds_the_residual_stream(
    address: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (arguments,) = [one for one in commands("docs/latent_space.md") if one[0] == "activations"]
    with pytest.raises(SystemExit):
        main([*arguments, "--url", address])
    capsys.readouterr()
    assert load_file(folder / "activations.safetensors")["layer.16"].shape[-1] == SCRIPTED_MODEL.d_model
