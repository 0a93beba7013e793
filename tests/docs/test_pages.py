"""What exists is documented: tables, settings, routes, commands and errors; and what the pages show can be read."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from app.core.errors import OUTCOMES
from app.core.settings import SCOPES, Settings
from steering.client.api import Api
from steering.client.routes import Route
from steering.concepts import CONCEPTS
from steering.conditions import CONDITIONS
from steering.errors import SteeringError
from steering.extraction import METHODS
from steering.operations import OPERATIONS
from steering.projection import PROJECTIONS
from steering.spec import InterventionSpec, Schedule, SteeringSpec, TokenScope, Unit
from tests.app.document import DOCUMENT
from tests.docs.pages import DOCS, PARTS, commands, refreshed

REPOSITORY = DOCS.parent
PAGES = sorted([*DOCS.glob("*.md"), *REPOSITORY.glob("*.md"), REPOSITORY / "steering" / "engine" / "README.md"])
MATHEMATICS = (DOCS / "mathematics.md").read_text(encoding="utf-8")
API = (DOCS / "api.md").read_text(encoding="utf-8")


def sections(page: str, heading: str) -> set[str]:
    """Names of the ### sections under a ## heading."""
    body = re.split(r"^## ", page, flags=re.MULTILINE)
    found = next(part for part in body if part.startswith(f"{heading}\n"))
    return set(re.findall(r"^### (\S+)$", found, flags=re.MULTILINE))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("Operations", list(OPERATIONS)),
        ("Conditions", list(CONDITIONS)),
        ("Extraction", list(METHODS)),
        ("Projections", list(PROJECTIONS)),
        ("Schedules", list(Schedule.model_json_schema()["properties"]["kind"]["enum"])),
        ("Units", list(InterventionSpec.model_json_schema()["properties"]["unit"]["enum"])),
    ],
)
def test_every_word_of_the_language_has_its_section_of_mathematics(heading: str, names: list[str]) -> None:
    assert set(names) <= sections(MATHEMATICS, heading)


def test_every_scope_has_its_row_of_mathematics() -> None:
    for scope in TokenScope.model_json_schema()["properties"]["tokens"]["enum"]:
        assert f"| `{scope}` |" in MATHEMATICS


def test_every_concept_has_its_poles_described() -> None:
    page = (DOCS / "concepts.md").read_text(encoding="utf-8")
    for name in CONCEPTS:
        assert name in page


def test_every_field_of_an_intervention_is_in_the_api_page() -> None:
    table = API[API.index("| field |") : API.index("## Generate")]
    for name in InterventionSpec.model_fields:
        assert f"`{name}" in table, name


def test_every_route_is_in_the_api_page_with_the_scope_it_needs() -> None:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            scope = operation.get("x-scope", "")
            assert re.search(rf"^\| `{method.upper()} {re.escape(path)}` \| {scope} ?\|", API, re.MULTILINE), (
                f"docs/api.md needs the line: | `{method.upper()} {path}` | {scope} | ... |"
            )


def test_every_query_parameter_is_in_the_api_page() -> None:
    found = {
        parameter["name"]
        for methods in DOCUMENT["paths"].values()
        for operation in methods.values()
        for parameter in operation.get("parameters", [])
        if parameter["in"] == "query"
    }
    assert found
    for name in found:
        assert re.search(rf"[?&]{name}\b", API), name


def test_every_method_of_the_client_is_in_the_api_page() -> None:
    table = API[API.index("| methods |") :]
    for name, member in vars(Api).items():
        assert not isinstance(member, Route) or f"`{name}`" in table, name


def test_every_method_that_waits_for_a_job_is_named() -> None:
    sentence = API[API.index("Methods that wait for a job") :].partition(")")[0]
    for name, member in vars(Api).items():
        if isinstance(member, Route):
            assert (member.part is not None) == (f"`{name}`" in sentence), name


def test_every_list_that_comes_in_pages_is_named() -> None:
    sentence = API[API.index("Lists of vectors") :].partition(" come in pages")[0]
    for path, methods in DOCUMENT["paths"].items():
        if {"limit", "cursor"} <= {one["name"] for one in methods.get("get", {}).get("parameters", ())}:
            assert path.removeprefix("/v1/") in sentence, path


def test_every_unit_and_every_scope_of_a_key_is_explained() -> None:
    glossary, deploying = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("glossary", "deploying"))
    (units,) = re.findall(r"^\| \*\*unit\*\* \| (.*)", glossary, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", units)) == set(get_args(Unit))
    (scopes,) = re.findall(r"^\| \*\*key scope\*\* \| .*: (.*) \|", glossary, re.MULTILINE)
    assert scopes.split(", ") == list(SCOPES)
    table = deploying[deploying.index("| scope | allows |") :].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(SCOPES)


def test_the_first_page_names_every_page() -> None:
    first = (DOCS / "index.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or f"]({page.name})" in first, page.name


def test_every_error_code_is_in_the_api_page_with_its_status() -> None:
    def every(kind: type[SteeringError]) -> list[type[SteeringError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in every(child))]

    table = API[API.index("## Errors") : API.index("## The Python client")]
    for kind in every(SteeringError):
        status = next(OUTCOMES[one].status for one in kind.__mro__ if one in OUTCOMES)
        row = next((line for line in table.splitlines() if f"`{kind.code}`" in line), "")
        assert str(status) in row.split("|")[1], f"{kind.code} belongs to status {status}"


@pytest.mark.parametrize("page", PARTS)
def test_generated_parts_are_fresh(page: str) -> None:
    assert refreshed(page) == (DOCS / page).read_text(encoding="utf-8"), "run: python -m tests.docs.pages"


def test_every_setting_says_what_it_is_for() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_every_command_and_option_says_what_it_is_for() -> None:
    for path, command in commands():
        assert command.help, path
        for option in command.params:
            assert option.help, f"{path} {option.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_python_and_json_on_a_page_can_be_read(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")
    for text in blocks(page, "json"):
        json.loads(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_json_given_to_curl_on_a_page_can_be_read(page: Path) -> None:
    for text in blocks(page, "sh"):
        for body in re.findall(r"-d '(\{.*?\})'", text, flags=re.DOTALL):
            json.loads(body)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target) if target else page
        assert file.exists(), f"{page.name} links to {link}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {_slug(heading) for heading in headings}, f"{page.name} links to {link}"


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_named_on_a_page_exist(page: Path) -> None:
    """A path in backquotes that starts with a folder of the repository; names in angle brackets stand for any name."""
    for path in re.findall(
        r"`((?:app|steering|tests|benchmarks|tools|docs|examples)/[\w./-]+)`", page.read_text(encoding="utf-8")
    ):
        built = path.startswith(("benchmarks/results/FILE", "app/static"))
        assert built or (REPOSITORY / path).exists(), f"{page.name} names {path}"


def test_the_steering_shown_in_the_api_page_is_steering() -> None:
    shown = API[API.index("## Steering") :]
    block = re.search(r"```json\n(.*?)```", shown, re.DOTALL)
    assert block is not None
    example = json.loads(block.group(1))
    assert len(SteeringSpec(interventions=example).interventions) == 1


def test_every_make_target_on_a_page_exists() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    for page in PAGES:
        for text in [*blocks(page, "sh"), *re.findall(r"`(make [a-z-]+)", page.read_text(encoding="utf-8"))]:
            assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets, page.name
