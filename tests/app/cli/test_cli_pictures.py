"""Maps and cards are written to files, comparisons are shown live and in colour, and a model runs in the process."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from app.cli.local import extract_missing, local_client
from app.cli.model import texts_and_labels
from app.cli.tables import comparison_table, live_comparison, sweep_chart
from app.core.settings import Settings
from steering.client import Client
from steering.errors import InvalidRequest
from steering.store.records import KeyRecord
from steering.store.store import Store
from tests.app.cli.conftest import Steer
from tests.app.conftest import D_MODEL
from tests.app.running import running
from tests.fakes import ScriptedEngine
from tests.memory_store import memory_store

TEXTS = "text,label\n" + "".join(f"good {n},a\nbad {n},b\n" for n in range(6))


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running() as found:
        with Client(found) as client:
            client.register_vector("calm", {"1": [1.0] * D_MODEL})
        yield found


def test_a_map_is_written_as_a_page_and_as_a_picture(steer: Steer, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text(TEXTS, encoding="utf-8-sig")  # as a spreadsheet writes it
    for name, start in (("map.html", b"<!doctype html>"), ("map.png", b"\x89PNG")):
        output, error = steer("map", str(tmp_path / "texts.csv"), "--out", str(tmp_path / name))
        assert not output
        assert f"wrote {tmp_path / name}" in error.replace("\n", "")
        assert (tmp_path / name).read_bytes().startswith(start)
    assert "input embeddings" in (tmp_path / "map.html").read_text()
    assert ".html or .png" in steer("map", str(tmp_path / "texts.csv"), "--out", "map.gif", code=2)[1]
    out, _ = steer("map", str(tmp_path / "texts.csv"), "--out", str(tmp_path / "too.html"), "--json")
    assert json.loads(out)["layers"]
    assert (tmp_path / "too.html").read_bytes().startswith(b"<!doctype html>")


def test_texts_are_read_from_csv_and_from_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"one, two",x\nthree,y\n')
    assert texts_and_labels(tmp_path / "a.csv") == (["one, two", "three"], ["x", "y"])
    (tmp_path / "b.csv").write_text("text\none\n")
    assert texts_and_labels(tmp_path / "b.csv") == (["one"], None)
    (tmp_path / "c.txt").write_text("one\n\ntwo\n")
    assert texts_and_labels(tmp_path / "c.txt") == (["one", "two"], None)
    (tmp_path / "d.csv").write_text("words\none\n")
    with pytest.raises(InvalidRequest, match="no column 'text'"):
        texts_and_labels(tmp_path / "d.csv")


def test_a_card_is_written_as_a_page(steer: Steer, tmp_path: Path) -> None:
    assert not steer("card", "calm", "--out", str(tmp_path / "card.html"))[0]
    assert "calm@1" in (tmp_path / "card.html").read_text()


def test_arms_are_shown_while_they_are_generated_and_differences_are_coloured(address: str) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, no_color=False, width=100, color_system="standard")
    with Client(address) as client:
        options = {
            "prompt": "x",
            "steering": [{"vector": "calm", "strength": 3.0}],
            "max_tokens": 8,
            "readout": ["calm"],
        }
        answer = live_comparison(client, options, console)
    assert "steered" in output.getvalue(), "a panel of the live view"
    output.seek(output.truncate(0))
    console.print(comparison_table(answer, "x"))
    against = answer.arms[1].against_baseline
    assert against is not None
    changed = next(span.other for span in against.diff[0] if span.kind != "equal")
    assert f"\x1b[1;36m{changed}" in output.getvalue()


def test_a_sweep_is_drawn_as_bars_in_the_order_of_strength(address: str) -> None:
    output = io.StringIO()
    with Client(address) as client:
        answer = client.compare("x", intervention={"vector": "calm"}, strengths=[1, 0, -1], readout=["calm"])
    Console(file=output, width=100).print(sweep_chart(answer, "calm"))
    rows = output.getvalue().splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["-1", "+0", "+1"]
    readouts = {arm.name: arm.metrics.readout["calm"].mean for arm in answer.arms if arm.metrics}
    assert f"{readouts['+1']:+.2f}" in rows[2]


async def _store_with_a_key(_: Settings) -> Store:
    store = await memory_store()
    await store.keys.create(KeyRecord("key_1", "team", "0" * 64, ("read",)))
    return store


def test_a_local_model_answers_where_the_database_has_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a-key-of-a-file-0123456789\n", encoding="utf-8")
    with local_client(lambda _: ScriptedEngine(), _store_with_a_key, api_keys_file=file) as client:
        assert client.generate("a", max_tokens=2, steering=[]).choices[0].text


def test_a_local_model_answers_and_missing_starter_vectors_are_extracted() -> None:
    with local_client(lambda _: ScriptedEngine(), memory_store) as client:
        extract_missing(client, ["sentiment", "unknown", "sentiment"])
        assert [one.id for one in client.list_vectors().data] == ["sentiment@1"]
        extract_missing(client, ["sentiment"])
        assert client.get_vector("sentiment").version == 1
