"""docs/extraction.md names every method, concept and warning there is, and its Python runs."""

import re
from pathlib import Path

from steering.concepts import CONCEPTS
from steering.extraction import METHODS, card

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "extraction.md").read_text(encoding="utf-8")


def test_every_concept_is_listed_with_its_poles() -> None:
    for name, entry in CONCEPTS.items():
        assert f"| `{name}` | {entry.positive} | {entry.negative} |" in PAGE


def test_every_method_is_listed_with_the_fewest_examples_it_takes() -> None:
    for name, method in METHODS.items():
        assert f"| `{name}` | {method.min_examples} or more |" in PAGE


def test_every_warning_is_explained() -> None:
    source = Path(card.__file__).read_text(encoding="utf-8")
    openings = re.findall(
        r'f?"((?:too few|nothing was|few topics|reads the|not shown|random directions|pairs disagree)[^"]*)', source
    )
    assert len(openings) == source.count("yield ")
    explained = re.findall(r"^\| `([^`]+)` \|", PAGE, flags=re.MULTILINE)
    for opening in openings:
        assert any(opening.startswith(words) for words in explained), opening


def test_the_thresholds_are_those_of_the_code() -> None:
    assert f"fewer than {card.FEW_PAIRS}: write more" in PAGE
    assert f"fewer than {card.FEW_TOPICS}: the figures" in PAGE
    assert f"agreement below {card.LOW_AGREEMENT}" in PAGE
    assert f"between {card.WINDOW[0]:.0%} and {card.WINDOW[1]:.0%} of the depth".replace("%", " %") in PAGE


def test_its_python_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})
