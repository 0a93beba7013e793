"""Results become rows, frames and HTML; model text in HTML is text; map layers are aligned."""

import json
import math
import re
import sys
from collections.abc import Iterator

import pytest

from steering.cards import Recommended
from steering.client import Client
from steering.client.display import Line, aligned, card_html, line_chart, number, shade
from steering.schemas.latent_space import LayerMapAnswer
from tests.app.conftest import D_MODEL
from tests.app.running import running

HOSTILE = "</script><img src=x onerror=alert(1)> & <b>good</b>"


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with running() as address, Client(address) as found:
        found.register_vector("calm", {"1": [1.0] * D_MODEL, "2": [0.5] * D_MODEL}, description=HOSTILE)
        yield found


def test_a_comparison_has_a_row_per_sample_and_marks_differences(client: Client) -> None:
    found = client.compare(HOSTILE, steering=[{"vector": "calm", "strength": 2}], n=2, readout=["calm"], max_tokens=8)
    rows = found.rows()
    assert [(row["arm"], row["sample"]) for row in rows] == [("base", 0), ("base", 1), ("steered", 0), ("steered", 1)]
    assert rows[2]["text"] == found.arms[1].choices[0].text
    assert isinstance(rows[2]["readout_calm"], float)
    html = found._repr_html_()
    assert "<ins>" in html
    assert found.to_dict()["seed"] == found.seed
    assert list(found.to_frame().columns)[:3] == ["arm", "sample", "text"]


def test_a_vector_has_a_row_per_layer_and_its_description_is_text(client: Client) -> None:
    found = client.get_vector("calm")
    assert [row["layer"] for row in found.rows()] == [1, 2]
    html = found._repr_html_()
    assert "<img" not in html
    assert "&lt;img" in html


@pytest.mark.parametrize(
    ("recommended", "said"),
    [
        (
            Recommended((2,), negative=(-2.6, -1.8), basis="measured", margin=0.05),
            "measured strength -2.6 to -1.8, beyond chance by 0.050",
        ),
        (Recommended((2,), (1.7, 1.7), (-1.7, -1.7), basis="measured"), "measured strength -1.7 and 1.7"),
        (Recommended((2,), strengths_to_try=(1.0, 2.0), basis="card"), "strengths to try 1 to 2 (not measured)"),
    ],
)
def test_a_card_shows_all_strengths_that_are_recommended(client: Client, recommended: Recommended, said: str) -> None:
    html = card_html(client.get_vector("calm").model_copy(update={"recommended": recommended}))
    assert f"recommended: layer 2, {said}" in html


def test_an_extracted_vector_shows_its_card_as_charts(client: Client) -> None:
    pairs = [{"positive": f"good {index}", "negative": f"bad {index}", "topic": str(index % 8)} for index in range(32)]
    html = client.extract_vector("mood", pairs=pairs)._repr_html_()
    assert html.count("<polyline") == 2, "AUROC and random directions"
    assert "<polygon" in html, "the interval"


def test_a_readout_has_a_row_per_token(client: Client) -> None:
    found = client.readout(["good", HOSTILE], vectors=["calm"], layers=[1])
    rows = found.rows()
    assert len(rows) == sum(len(text.tokens) for text in found.texts)
    assert rows[0]["layer"] == 1
    assert "<img" not in found._repr_html_()


def test_a_map_page_contains_its_data_and_no_element_of_a_text(client: Client) -> None:
    texts = [HOSTILE, "good day", "bad day", "good night", "bad night", "fine"]
    found = client.latent_space(texts, labels=["a", "b", "a", "b", "a", "b"], layers=[1, 2], embeddings=True)
    assert len(found.rows()) == 18
    page = found.page(texts, ["a", "b", "a", "b", "a", "b"])
    assert page.count("</script>") == 1
    assert "http://www.w3.org/2000/svg" in page
    assert not re.findall(r"(?:src|href)=", page.split("<script>")[0]), "no other file"
    data = json.loads(page[page.index("const DATA = ") + 13 : page.index(";\n", page.index("const DATA = "))])
    assert data["texts"] == texts
    assert [layer["name"] for layer in data["layers"]] == ["input embeddings", "layer 1", "layer 2"]
    assert "srcdoc" in (found._repr_html_() or "")


def test_a_notebook_shows_a_map_in_three_dimensions_as_text(client: Client) -> None:
    texts = ["good day", "bad day", "good night", "bad night", "fine"]
    assert client.latent_space(texts, layers=[1], dims=3)._repr_html_() is None


def test_a_map_is_drawn_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package steering-client does not depend on it."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    layer = LayerMapAnswer(layer=0, points=[[0, 0], [2, 0]], explained_variance=None, separability=None, segments=[])
    assert aligned([layer, layer]) == [[(-1.0, 0.0), (1.0, 0.0)]] * 2


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0.0, 30.0, 170.0, -95.0])
def test_a_rotated_scaled_and_mirrored_layer_is_aligned_with_the_one_before(degrees: float, mirrored: bool) -> None:
    points = [(1.0, 0.0), (0.2, 2.0), (-3.0, 0.5), (0.4, -1.0), (2.0, 2.5)]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    flip = -1.0 if mirrored else 1.0
    turned = [[7 + 3 * (cos * x - sin * flip * y), 3 * (sin * x + cos * flip * y) - 2] for x, y in points]
    layers = [
        LayerMapAnswer(layer=index, points=found, explained_variance=None, separability=None, segments=[])
        for index, found in enumerate([[list(point) for point in points], turned])
    ]
    first, second = aligned(layers)
    for one, other in zip(first, second, strict=True):
        assert one == pytest.approx(other, abs=1e-9)


def test_charts_leave_out_what_is_not_finite_and_are_empty_without_points() -> None:
    chart = line_chart([Line("a & b", "#000", [0, 1, 2], [0.5, math.nan, 1.0])], "x", "y")
    assert chart.count(",") == 2, "two points"
    assert "a &amp; b" in chart
    assert line_chart([Line("a", "#000", [0], [math.nan])], "x", "y") == ""


def test_numbers_and_shades() -> None:
    assert (number(None), number(math.nan), number(1.234, sign=True)) == ("", "", "+1.23")
    assert shade(3.0) != shade(-3.0)
    assert shade(30.0) == shade(3.0)
