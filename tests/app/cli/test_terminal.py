"""What a command prints and reads: text of a model made safe, layers and steering as a person writes them."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from app.cli.commands import layers_of, steering_of
from app.cli.tables import applied_lines, comparison_table, interventions_text
from app.cli.terminal import print_exactly, print_json, safe
from steering.schemas.comparison import ArmAnswer, CompareAnswer
from steering.schemas.generation import Choice
from steering.schemas.steering import AppliedIntervention, AppliedSteering
from steering.spec import InterventionSpec, LayerRange, StrengthFrom

ESCAPES = "\x1b[2J\x1b]0;title\x07 \u202eabc\u2066 \x9b31m\r\x08"


@given(st.text())
def test_no_text_reaches_the_terminal_with_a_control_code_in_it(text: str) -> None:
    kept = safe(text)
    for character in kept:
        assert character in "\n\t" or unicodedata.category(character) not in {"Cc", "Cs"}
        assert unicodedata.bidirectional(character) not in {
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        }


def test_ordinary_text_of_any_script_is_kept() -> None:
    text = "naïve 日本語 עברית 👩‍🔬\n\ttab"
    assert safe(text) == text


def test_what_a_model_wrote_is_shown_as_text_and_never_as_codes_or_markup() -> None:
    steering = AppliedSteering(fingerprint="", applied=[], warnings=[f"beware {ESCAPES}[red]"])
    choice = Choice(index=0, text=f"one [bold]two[/bold] {ESCAPES}", finish_reason="stop")
    answer = CompareAnswer(
        id="c",
        model="m",
        seed=1,
        baseline="b",
        arms=[ArmAnswer(name=f"b{ESCAPES}", choices=[choice], steering=steering)],
    )
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(comparison_table(answer, f"prompt {ESCAPES}"))
        for line in applied_lines(steering):
            console.print(line)
    printed = capture.get()
    assert "[bold]two[/bold]" in printed
    assert "beware" in printed
    assert not any(unicodedata.category(character) == "Cc" and character != "\n" for character in printed)
    assert "\u202e" not in printed


def test_stored_steering_is_described_by_what_its_operations_use() -> None:
    assert interventions_text(None) == "no steering"
    heads = [InterventionSpec(operation="ablate", hook="attention", head=1, layers=at) for at in (
        "all", (1, 2), LayerRange.model_validate({"from": 0, "to": 2})
    )]  # fmt: skip
    turned = InterventionSpec(vector="calm", operation="rotate", degrees=20, strength=-0.5)
    at = ["all", "1,2", "0:2"]
    expected = ["rotate calm by -10 degrees", *(f"ablate head 1 at layers {layers}" for layers in at), "add warm +0.5"]
    assert interventions_text([turned, *heads, InterventionSpec(vector="warm", strength=0.5)]) == ", ".join(expected)


def test_text_and_json_are_printed_without_a_change(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\tarr[:x:] :100: [bold] " + "y" * 200
    print_exactly(text + "\n")
    print_json({"text": text})
    printed, written = capsys.readouterr().out.split("\n", 1)
    assert printed == text
    assert written.isascii()
    assert json.loads(written) == {"text": text}


def test_a_strength_from_a_score_is_shown_with_its_formula() -> None:
    source = StrengthFrom(vector="mood@1", bias=0.2, activation="relu")
    applied = AppliedIntervention(
        vector="warm@2", sha256="0", operation="add", layers=[1], strength=0.5, unit="scale", strength_from=source,
        planned_dose={}, relative_dose={"1": 0.03}, fired=True,
    )  # fmt: skip
    (line,) = applied_lines(AppliedSteering(fingerprint="", applied=[applied], warnings=[]))
    assert line.plain.startswith("add warm@2 at +0.5 scale times (score of mood@1 +0.2, at least 0): relative dose")


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("recommended", "recommended"),
        ("all", "all"),
        ("12,13", [12, 13]),
        ("-1", [-1]),
        ("10:16", {"from": 10, "to": 16}),
    ],
)
def test_layers_as_a_person_writes_them(text: str, layers: object) -> None:
    assert layers_of(text) == layers


def test_steering_is_the_sum_of_its_options() -> None:
    assert steering_of([]) is None
    first = {"vector": "a", "strength": -0.5, "layers": [3]}
    assert steering_of(["a=-0.5"], "3", None, '{"vector": "b"}') == [first, {"vector": "b"}]
    assert steering_of(["a"], "all", "kept", None) == {
        "profile": "kept",
        "interventions": [{"vector": "a", "strength": 1.0, "layers": "all"}],
    }
