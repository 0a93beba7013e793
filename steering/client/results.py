"""Results of the client: the response models, with tables for pandas and HTML for notebooks."""

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import TYPE_CHECKING, Any

from steering.client.display import card_html, comparison_html, fragment, map_page, readout_html
from steering.client.reports import report_html, report_markdown
from steering.schemas.base import Answer
from steering.schemas.comparison import CompareAnswer
from steering.schemas.evaluation import DoseResponseAnswer, LayerSweepAnswer, ReportAnswer
from steering.schemas.latent_space import LatentSpaceAnswer
from steering.schemas.reading import ReadoutAnswer
from steering.schemas.vectors import VectorAnswer

if TYPE_CHECKING:
    import pandas


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
        """Returns arm, sample, text, KL, perplexity and readouts."""
        found: list[dict[str, Any]] = []
        for arm in self.arms:
            metrics, against = arm.metrics, arm.against_baseline
            shared = {
                "kl": against.kl_mean if against else None,
                "perplexity": metrics.perplexity if metrics else None,
                **{f"readout_{name}": one.mean for name, one in (metrics.readout.items() if metrics else ())},
            }
            found += [{"arm": arm.name, "sample": one.index, "text": one.text, **shared} for one in arm.choices]
        return found

    def _repr_html_(self) -> str:
        return fragment(comparison_html(self))


class Vector(Tabular, VectorAnswer):
    """A vector with its quality card: one row per layer."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns layer, scale and the measurements of the card."""
        layers = self.quality.layers if self.quality else {}
        return [
            {"layer": int(layer), "scale": scale, **(asdict(layers[int(layer)]) if int(layer) in layers else {})}
            for layer, scale in self.scale.items()
        ]

    def _repr_html_(self) -> str:
        return fragment(card_html(self))


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
        return fragment(readout_html(self))


class LatentMap(Tabular, LatentSpaceAnswer):
    """A map of texts: one row per layer and text."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns layer (None: input embeddings), text and coordinates."""
        layers = ([self.embedding] if self.embedding else []) + list(self.layers)
        return [
            {"layer": layer.layer, "text": index, **dict(zip("xyz", point, strict=False))}
            for layer in layers
            for index, point in enumerate(layer.points)
        ]

    def page(self, texts: Sequence[str], labels: Sequence[str] | None = None) -> str:
        """Returns a self-contained HTML page with a slider over the layers. Only for two dimensions."""
        return map_page(self, texts, labels)

    def _repr_html_(self) -> str:
        numbered = [f"text {index}" for index in range(len(self.layers[0].points))]
        return f'<iframe srcdoc="{escape(self.page(numbered))}" width="100%" height="860" style="border:0"></iframe>'


class DoseResponse(Tabular, DoseResponseAnswer):
    """A dose-response: one row per strength."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns the measurements of each strength."""
        rows: list[dict[str, Any]] = self.model_dump(mode="json", include={"points"})["points"]
        return rows


class LayerSweep(Tabular, LayerSweepAnswer):
    """A layer sweep: one row per layer and strength."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns the measurements of each layer and strength."""
        return [point.model_dump(mode="json") for point in self.points]


class Report(Tabular, ReportAnswer):
    """A deployment report: one row per seed and check."""

    def rows(self) -> list[dict[str, Any]]:
        """Returns every check with its gate and seed."""
        return [
            {"seed": seed.seed, "gate": gate.name, **check.model_dump(mode="json")}
            for seed in self.seeds
            for gate in seed.gates
            for check in gate.checks
        ]

    def markdown(self) -> str:
        """Returns the whole report as Markdown, its texts included."""
        return report_markdown(self)

    def page(self) -> str:
        """Returns the whole report as a self-contained HTML page."""
        return report_html(self)
