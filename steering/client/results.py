"""Results of the client: the response models, with tables for pandas, HTML for notebooks, and reports as Markdown and pages."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from steering.client import display
from steering.schemas.base import Answer
from steering.schemas.choices import ChoicesAnswer
from steering.schemas.comparison import CompareAnswer
from steering.schemas.evaluation import (
    CheckAnswer,
    DoseResponseAnswer,
    LayerSweepAnswer,
    ReportAnswer,
    ScoresAnswer,
    SeedReportAnswer,
)
from steering.schemas.latent_space import LatentSpaceAnswer
from steering.schemas.reading import ReadoutAnswer
from steering.schemas.vectors import VectorAnswer

if TYPE_CHECKING:
    import pandas

Row: TypeAlias = tuple[str, ...]
CHECKS = ("gate", "check", "value", "demanded", "margin", "verdict")
EFFECTS = ("side effect on", "layer", "shift")
TEXTS = ("variation", "prompt", "unsteered", "steered", "moved")
BROKEN = "The activations became non-finite."
"""Why nothing of a seed was judged."""
VERDICTS = ("pass", "not shown", "FAIL")
_RELATIONS = {"above": ">", "at_most": "<=", "at_least": ">="}


class Tabular(Answer):
    """A response that can be converted to rows."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the response as JSON types."""
        return self.model_dump(mode="json")

    def rows(self) -> list[dict[str, Any]]:
        """Returns one flat dict per row."""
        raise NotImplementedError

    def to_frame(self) -> "pandas.DataFrame":
        """Returns the rows as a DataFrame. Raises ImportError when pandas is not installed."""
        import pandas  # noqa: PLC0415 - optional

        return pandas.DataFrame(self.rows())


class Comparison(Tabular, CompareAnswer):
    """A comparison: one row per arm and sample."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns arm, sample, text, KL, perplexity and the readouts that were measured."""
        names = display.readouts_of(self)
        found: list[dict[str, Any]] = []
        for arm in self.arms:
            *means, kl, perplexity = display.figures(arm, names)
            readouts = {f"readout_{n}": mean for n, mean in zip(names, means, strict=True) if mean is not None}
            shared = {"kl": kl, "perplexity": perplexity, **readouts}
            found += [{"arm": arm.name, "sample": one.index, "text": one.text, **shared} for one in arm.choices]
        return found

    def _repr_html_(self) -> str:
        return display.fragment(display.comparison_html(self))


class Vector(Tabular, VectorAnswer):
    """A vector with its quality card: one row per layer."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns layer, scale and the measurements of the card."""
        measured = {layer: asdict(one) for layer, one in self.quality.layers.items()} if self.quality else {}
        return [
            {"layer": int(layer), "scale": scale, **measured.get(int(layer), {})} for layer, scale in self.scale.items()
        ]

    def _repr_html_(self) -> str:
        return display.fragment(display.card_html(self))


class Readout(Tabular, ReadoutAnswer):
    """A readout: one row per text, vector, layer and token."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns text, vector, layer, position, token and score."""
        return [
            {"text": i, "vector": vector, "layer": int(layer), "position": j, "token": token.text, "score": score}
            for i, text in enumerate(self.texts)
            for vector, layers in text.readout.items()
            for layer, scores in layers.items()
            for j, (token, score) in enumerate(zip(text.tokens, scores.scores, strict=True))
        ]

    def _repr_html_(self) -> str:
        return display.fragment(display.readout_html(self))


class LatentMap(Tabular, LatentSpaceAnswer):
    """A map of texts: one row per layer and text."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns layer (None: input embeddings), text and coordinates."""
        return [
            {"layer": layer.layer, "text": index, **dict(zip("xyz", point, strict=False))}
            for _, layer, _ in display.layers_of_map(self)
            for index, point in enumerate(layer.points)
        ]

    def page(self, texts: Sequence[str], labels: Sequence[str] | None = None) -> str:
        """Returns a self-contained HTML page with a slider over the layers. Only for two dimensions."""
        return display.map_page(self, texts, labels)

    def _repr_html_(self) -> str | None:
        if any(len(point) != 2 for layer in self.layers for point in layer.points):
            return None  # a notebook shows the text instead
        numbered = [f"text {index}" for index in range(len(self.layers[0].points))]
        return f'<iframe srcdoc="{escape(self.page(numbered))}" width="100%" height="860" style="border:0"></iframe>'


def item_rows(found: DoseResponseAnswer | LayerSweepAnswer | ReportAnswer) -> list[dict[str, Any]]:
    """Returns one flat dict per answer: what steered it, `prompt` and `sample` from 0, score and surprise.

    Fields that do not apply are left out, and so are answers of steering that made activations non-finite."""
    groups: list[tuple[dict[str, Any], Sequence[ScoresAnswer]]]
    if isinstance(found, ReportAnswer):
        groups = [({"seed": seed.seed}, seed.scores) for seed in found.seeds]
    else:
        groups = [({}, found.scores)]
    rows: list[dict[str, Any]] = []
    for seed, scored in groups:
        for one in scored:
            about = {**seed, **one.model_dump(exclude={"scores", "surprises"}, exclude_none=True)}
            for prompt, numbers in enumerate(zip(one.scores, one.surprises, strict=True)):
                rows += [
                    {**about, "prompt": prompt, "sample": sample, "score": score, "surprise": surprise}
                    for sample, (score, surprise) in enumerate(zip(*numbers, strict=True))
                ]
    return rows


class _WithItems(Answer):
    def items(self) -> list[dict[str, Any]]:
        """Returns one row per answer, see `item_rows`."""
        return item_rows(cast("Report", self))


class DoseResponse(Tabular, _WithItems, DoseResponseAnswer):
    """A dose-response: one row per strength."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns the measurements of each strength."""
        rows: list[dict[str, Any]] = self.model_dump(mode="json", include={"points"})["points"]
        return rows


class LayerSweep(Tabular, _WithItems, LayerSweepAnswer):
    """A layer sweep: one row per layer and strength."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns the measurements of each layer and strength."""
        return [point.model_dump(mode="json") for point in self.points]


class Choices(Tabular, ChoicesAnswer):
    """Multiple choice: one row per item."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns the scores of each item, steered ones with the prefix `steered_`."""
        return [
            {**one.unsteered.model_dump(), **{f"steered_{k}": v for k, v in (one.steered or {})}} for one in self.items
        ]


class Report(Tabular, _WithItems, ReportAnswer):
    """A deployment report: one row per seed and check."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns every check with its gate and seed."""
        return [
            {"seed": seed.seed, "gate": gate.name, **check.model_dump(mode="json")}
            for seed in self.seeds
            for gate in seed.gates
            for check in gate.checks
        ]

    def verdict(self) -> str:
        """Returns the word for the whole report."""
        return _worst(seed_verdict(seed) for seed in self.seeds)

    def agreement(self) -> str:
        """Returns whether the seeds agree, as the end of a sentence; nothing for one seed."""
        if len(self.seeds) < 2:
            return ""
        return "; the seeds agree" if self.seeds_agree else "; the seeds do not agree"

    def _notes(self) -> list[str]:
        return [item.model_dump_json(exclude_defaults=True) for item in self.interventions]

    def _circumstances(self) -> str:
        return f"{self.model}, concept meant to go {self.direction}{self.agreement()}."

    def markdown(self) -> str:
        """Returns the whole report as Markdown: verdicts, checks, side effects and texts of each seed."""
        lines = [
            f"# Deployment report: {self.vector}\n",
            f"**{self.verdict()}**, {self._circumstances()}\n",
            *(f"- `{note}`" for note in self._notes()),
            *(f"- warning: {_cell(warning)}" for warning in self.warnings),
        ]
        for seed in self.seeds:
            lines.append(f"\n## Seed {seed.seed}: {seed_verdict(seed)}\n")
            if seed.broken:
                lines.append(BROKEN)
                continue
            for columns, rows in _tables(seed):
                cells = (columns, ("---",) * len(columns), *rows)
                lines += [*(f"| {' | '.join(map(_cell, row))} |" for row in cells), ""]
        return "\n".join(lines) + "\n"

    def page(self) -> str:
        """Returns the whole report as a self-contained HTML page without scripts; texts are escaped."""
        body = [
            f"<h1>Deployment report: {escape(self.vector)}</h1>",
            f"<p><strong>{self.verdict()}</strong>, {escape(self._circumstances())}</p>",
            display.warnings_list([*self._notes(), *(f"warning: {warning}" for warning in self.warnings)]),
        ]
        for seed in self.seeds:
            body.append(f"<h2>Seed {seed.seed}: {seed_verdict(seed)}</h2>")
            if seed.broken:
                body.append(f"<p>{BROKEN}</p>")
                continue
            for columns, rows in _tables(seed):
                body.append(display.table(columns, [list(map(escape, row)) for row in rows], range(len(columns))))
        return display.page(f"Deployment report: {self.vector}", "\n".join(body))


def check_verdict(check: CheckAnswer) -> str:
    """Returns the word for a check: one that passes on average, and not with its whole interval, is not shown to pass, and
    neither is one of which nothing was measured."""
    return VERDICTS[0] if check.passed else VERDICTS[1] if check.on_average or check.value is None else VERDICTS[2]


def seed_verdict(seed: SeedReportAnswer) -> str:
    """Returns the word for a seed: the worst of its checks."""
    checks = [check_verdict(check) for gate in seed.gates for check in gate.checks]
    return VERDICTS[2] if seed.broken else _worst(checks)


def _worst(verdicts: Iterable[str]) -> str:
    return max(verdicts, key=VERDICTS.index)


def check_row(check: CheckAnswer) -> Row:
    """Returns name, value with interval, threshold, margin and verdict of a check."""
    relation = f"{_RELATIONS[check.relation]} {check.threshold:.2f}"
    margin = "" if check.margin is None else f"{check.margin:+.3f}"
    return check.name, _measured(check.value, check.interval), relation, margin, check_verdict(check)


def _tables(seed: SeedReportAnswer) -> Iterator[tuple[Row, list[Row]]]:
    """Yields columns and rows of the checks, of the side effects and of the texts."""
    yield CHECKS, [(gate.name, *check_row(check)) for gate in seed.gates for check in gate.checks]
    effects = [(one.vector, str(one.layer), _measured(one.shift.mean, one.shift.interval)) for one in seed.side_effects]
    yield EFFECTS, [*effects]
    yield TEXTS, [(one.variation, one.prompt, one.unsteered, one.steered, f"{one.moved:+.2f}") for one in seed.texts]


def _measured(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "not measured"
    between = f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
    return f"{value:+.2f}{between}"


def _cell(text: str) -> str:
    """Returns one line for a table; markup in a model's text is shown as it is."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(plain.split()).replace("|", "\\|").replace("<", "&lt;")
