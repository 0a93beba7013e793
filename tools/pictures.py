"""Draws the pictures of docs/latent_space.md and of the README from the embedded model and from the saved benchmark of vector quality.

Usage: `python -m tools.pictures`, about two minutes on a CPU: the numbers come from the HTTP API, and matplotlib draws them.
`python -m tools.pictures http://127.0.0.1:8000` takes those of the playground from a server with the starter vectors, in Debian's chromium.
"""

import base64
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from playwright.sync_api import Page, expect, sync_playwright

from app.cli.local import local_client
from steering.client import Client
from steering.client.display import aligned
from steering.model.embedded import EMBEDDED_MODEL
from tools.gallery import GALLERY

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
PANELS: tuple[str | int, ...] = ("embedding", 0, 6, 12, 18, 24, 29)
CONCEPTS = ("sentiment", "truthfulness", "formality", "toxicity")
LENS_PROMPT = "The capital of France is"
COLOURS = ("#2563eb", "#d97706", "#059669", "#db2777")


def main(address: str | None = None) -> None:
    """Draws all pictures and prints the table of the logit lens; with an address, takes those of the playground there."""
    if address is not None:
        take_pages(address)
        return
    matplotlib.rcParams.update({"svg.hashsalt": "steering-server", "font.size": 9, "axes.spines.top": False})
    matplotlib.rcParams.update({"axes.spines.right": False, "svg.fonttype": "none"})
    PICTURES.mkdir(exist_ok=True)
    with local_client() as client:
        layer_map(client)
        separability(client)
        print(lens_table(client))
    dose()


def take_pages(address: str) -> None:
    """Takes Play with a steered answer, and the scenes of Space's story as they end, from a server that has the vector `sentiment`."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium-headless-shell") or shutil.which("chromium"), args=["--no-sandbox"]
        )
        context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
        context.set_default_timeout(300_000)
        page = context.new_page()
        state = base64.urlsafe_b64encode(json.dumps(play()).encode()).decode().rstrip("=")
        page.goto(f"{address}/#/compare?s={state}")
        page.locator(".poles").get_by_text("gloomy").wait_for()
        page.get_by_role("button", name="Run", exact=True).click()
        page.locator(".pane .sentence").first.wait_for()
        expect(page.locator("[aria-busy=true]")).to_have_count(0, timeout=300_000)
        page.screenshot(path=PICTURES / "playground.png")
        _take_story(page, address)
        browser.close()


def play() -> dict[str, Any]:
    """Returns what the picture of the README shows: the first saved answer of the gallery, asked again at the end of its dial that moves it most."""
    item = json.loads((GALLERY / f"{EMBEDDED_MODEL}.json").read_text(encoding="utf-8"))["items"][0]
    end = max(item["stops"], key=lambda stop: abs(stop["shift"][0]))
    return {
        "prompt": item["prompt"],
        "seed": item["seed"],
        "controls": [{"vector": item["vector"], "strength": end["strength"]}],
        "sampling": {"max_tokens": 48, "n": 1},
        "reader": item["vector"],
    }


def _take_story(page: Page, address: str) -> None:
    page.goto(f"{address}/#/space")
    story = page.locator(".story")
    story.locator("canvas").wait_for()
    count = 4
    for scene in range(1, count + 1):
        story.screenshot(path=PICTURES / f"story_{scene}.png")
        if scene < count:
            story.get_by_role("button", name="Next").click()


def layer_map(client: Client) -> None:
    """Draws rude and courteous answers at several depths, and writes the page with all layers."""
    pairs = client.get_concept("toxicity").data
    texts = [_text(side) for pair in pairs for side in (pair.positive, pair.negative)]
    labels = [label for _ in pairs for label in ("rude", "courteous")]
    found = client.latent_space(texts, labels=labels, method="pca", position="mean", embeddings=True)
    assert found.embedding is not None
    layers = [found.embedding, *found.layers]
    names: list[str | int | None] = ["embedding", *(layer.layer for layer in found.layers)]
    points = aligned(layers)
    figure = Figure(figsize=(11.5, 2.3), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        index = names.index(name)
        separability = layers[index].separability
        auroc = float("nan") if separability is None or separability.auroc is None else separability.auroc
        _scatter(axis, points[index], labels)
        title = "input embeddings" if name == "embedding" else f"layer {name}"
        axis.set_title(f"{title}\nAUROC {auroc:.2f}", fontsize=8)
    _save(figure, "latent_space_layers")
    (PICTURES / "latent_space.html").write_text(found.page(texts, labels), encoding="utf-8")


def _scatter(axis: Axes, points: list[tuple[float, float]], labels: list[str]) -> None:
    for colour, label in zip(COLOURS[1::-1], ("rude", "courteous"), strict=True):
        chosen = [point for point, one in zip(points, labels, strict=True) if one == label]
        axis.scatter([x for x, _ in chosen], [y for _, y in chosen], s=6, color=colour, alpha=0.7, linewidths=0)
    axis.set_xticks([])
    axis.set_yticks([])


def _text(side: Any) -> str:
    return side if isinstance(side, str) else side[-1].content


def separability(client: Client) -> None:
    """Draws the held-out AUROC of several concepts by layer."""
    figure = Figure(figsize=(6.5, 3.0), layout="constrained")
    axis = figure.subplots()
    for colour, concept in zip(COLOURS, CONCEPTS, strict=True):
        card = client.extract_vector(f"{concept}-picture", concept=concept, position="last").quality
        assert card is not None
        measured = sorted((int(layer), one) for layer, one in card.layers.items())
        xs = [layer for layer, one in measured if one.auroc is not None]
        axis.plot(xs, [one.auroc for _, one in measured if one.auroc is not None], color=colour, label=concept)
    axis.axhline(0.5, color="gray", linestyle=":", linewidth=1)
    axis.set_xlabel("layer")
    axis.set_ylabel("held-out AUROC, last token")
    axis.legend(frameon=False)
    _save(figure, "separability")


def lens_table(client: Client) -> str:
    """Returns the next token predicted from some layers, as a Markdown table."""
    found = client.logit_lens(LENS_PROMPT, steering=[], top_k=3)
    rows = ["| layer | most likely next tokens |", "|---|---|"]
    for layer in found.layers:
        if layer.layer in (0, 6, 12, 18, 22, 26, len(found.layers) - 1):
            rows.append(f"| {layer.layer} | {', '.join(f'`{one.text}`' for one in layer.plain[-1])} |")
    return "\n".join(rows)


def dose() -> None:
    """Draws effect and damage by relative dose, from the saved benchmark."""
    results = json.loads(RESULTS.read_text())["dose"]
    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    effect, damage = figure.subplots(1, 2)
    for colour, concept in zip(COLOURS, ("sentiment", "toxicity", "formality", "refusal"), strict=True):
        points = sorted((point for point in results[concept]["points"] if point["strength"] >= 0), key=_strength)
        doses = [point["relative_dose"] for point in points]
        unsteered = points[0]["concept_score"]
        effect.plot(
            doses, [point["concept_score"] - unsteered for point in points], color=colour, label=concept, marker="."
        )
        damage.plot(doses, [point["perplexity_ratio"] for point in points], color=colour, marker=".")
    damage.axhline(1.5, color="gray", linestyle=":", linewidth=1)
    for axis, label in ((effect, "shift of the concept, natural scales"), (damage, "perplexity, ratio to unsteered")):
        axis.set_xlabel("relative dose")
        axis.set_ylabel(label)
    effect.legend(frameon=False)
    _save(figure, "dose")


def _strength(point: dict[str, float]) -> float:
    return point["strength"]


def _save(figure: Figure, name: str) -> None:
    figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
