"""`steer generate`, `compare`, `sweep`, `replay`, `batch`, `readout`, `lens`, `score`, `activations`, `explain`, `clusters`, `map` and
`card`: what the model writes under steering, and what it computes in given texts."""

from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import TypeAdapter
from typer import BadParameter, Option

from app.cli import tables
from app.cli.commands import (
    Asked,
    Connect,
    Layers,
    ListedLayers,
    Output,
    Profile,
    Steer,
    Steering,
    SteerLayers,
    TextFile,
    Texts,
    VectorName,
    command,
    csv_rows,
    file_argument,
    file_option,
    given,
    given_texts,
    layers_of,
    lines_of,
    numbers,
    output_option,
    position_of,
    steering_of,
    text_of,
)
from app.cli.terminal import console, print_exactly, print_warnings, safe, shown, stderr
from steering.client import Client
from steering.client.connection import Call
from steering.client.display import aligned, card_html, layers_of_map, page
from steering.client.routes import Route
from steering.errors import InvalidRequest
from steering.schemas.base import Answer
from steering.schemas.generation import GenerateAnswer, TokenPiece
from steering.schemas.messages import ScorePosition
from steering.schemas.steering import AppliedSteering
from steering.spec import Hook
from steering.strict_json import finite_number, load_json

if TYPE_CHECKING:
    from steering.client.results import LatentMap

SHOWN_CHARACTERS = 60  # of a text in a table
PANELS = 6  # layers in a picture; a page shows all of them
HELD_LAYERS = "Where --steer and --hold act: recommended, all, 12,13 or 10:16 (half-open); default: recommended."
HOLD = "Hold the mean readout of a vector at a score, by a strength of at most 1; repeatable."

ShareDose = Annotated[
    bool, Option("--share-dose", help="The layers share the relative dose of the recommended layers.")
]
Samples = Annotated[int, Option("--n", help="Samples per arm.")]
MaxTokens = Annotated[int, "Maximum number of generated tokens."]


@dataclass(frozen=True, slots=True)
class Steered:
    """How an answer is steered."""

    steer: Steer = None
    hold: Annotated[list[str] | None, Option("--hold", metavar="NAME=SCORE", help=HOLD)] = None
    layers: Annotated[str | None, HELD_LAYERS] = None
    share_dose: ShareDose = False
    profile: Profile = None
    steering: Steering = None

    def interventions(self) -> Any:
        """Returns the steering in the form of the API; None without any."""
        return steering_of(self.steer, self.layers, self.profile, self.steering, self.hold, share_dose=self.share_dose)


@dataclass(frozen=True, slots=True)
class Sampled:
    """How tokens are drawn."""

    temperature: Annotated[float, "0 is greedy decoding."] = 0.7
    seed: Annotated[int | None, "The same seed gives the same answer."] = None

    def fields(self, asked: Asked, max_tokens: int, **others: Any) -> dict[str, Any]:
        """Returns the fields of a generation."""
        return {**asked.fields(), "max_tokens": max_tokens, **asdict(self), **others}


AtHook = Annotated[Hook, "Where in the block: residual, attention or mlp."]
JsonSchemaFile = Annotated[Path | None, file_option("A JSON schema that the answer must match.", "--json-schema")]


@command
def generate(
    connect: Connect,
    asked: Asked,
    steered: Steered,
    sampled: Sampled,
    max_tokens: MaxTokens = 128,
    json_schema: JsonSchemaFile = None,
) -> Output:
    """Stream an answer, then show what the steering applied."""
    interventions = steered.interventions()
    options = sampled.fields(asked, max_tokens, steering=interventions)
    if json_schema is not None:
        schema = {"name": "answer", "schema": load_json(text_of(json_schema), json_schema.name)}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    client = connect(interventions)
    return lambda: tables.dumped(client.generate(**options)), lambda: _print_stream(client, options)


def _print_stream(client: Client, options: dict[str, Any]) -> None:
    """Prints an answer while it is generated, then what the steering applied."""
    for event in client.generate_stream(**options):
        if isinstance(event, TokenPiece):
            print_exactly(safe(event.text))
        elif isinstance(event, GenerateAnswer):
            console.print()
            _print_notes(f"seed {event.seed}, {event.usage.completion_tokens} tokens", event.steering)
            for flag in event.choices[0].flags or ():  # of monitors: this command asks for no flags of its own
                stderr.print(shown(tables.raised_line(flag), "yellow"))


@command
def compare(
    connect: Connect,
    asked: Asked,
    steered: Steered,
    sampled: Sampled,
    n: Samples = 1,
    max_tokens: MaxTokens = 64,
    readout: Annotated[list[str] | None, "A vector to measure at every token; repeatable."] = None,
) -> Output:
    """Show unsteered and steered answers side by side: one prompt, one seed, one batch."""
    interventions = steered.interventions()
    if not interventions:
        raise BadParameter("expected one of --steer NAME=STRENGTH, --hold NAME=SCORE, --profile, --steering")
    measured = readout or [one.partition("=")[0] for one in [*(steered.steer or []), *(steered.hold or [])]]
    options = sampled.fields(asked, max_tokens, n=n, steering=interventions, readout=measured)
    return _compared(connect(interventions), asked.prompt, options)


@command
def sweep(  # noqa: PLR0913, PLR0917 - one option a field
    connect: Connect,
    vector: Annotated[str, "The vector whose strength is swept."],
    asked: Asked,
    sampled: Sampled,
    strengths: Annotated[str, "Strengths, separated by commas."] = "-1,-0.5,0,0.5,1",
    layers: Layers = "recommended",
    share_dose: ShareDose = False,
    operation: Annotated[str, "add, ablate, clamp, rotate, replace or apply."] = "add",
    degrees: Annotated[float | None, "For rotate: the angle of strength 1."] = None,
    low: Annotated[float | None, "For clamp: the smallest score, in natural scales."] = None,
    high: Annotated[float | None, "For clamp: the largest score, in natural scales."] = None,
    to: Annotated[str | None, "For replace: the vector that takes its place."] = None,
    n: Samples = 1,
    max_tokens: MaxTokens = 64,
) -> Output:
    """Answer one prompt at many strengths of one vector."""
    intervention = given(vector=vector, operation=operation, layers=layers_of(layers), degrees=degrees, low=low)
    intervention |= given(high=high, to=to, share_dose=share_dose or None)
    options = sampled.fields(asked, max_tokens, n=n, readout=[vector], intervention=intervention)
    options["strengths"] = numbers(strengths, "--strengths", finite_number)
    return _compared(connect([intervention]), asked.prompt, options, swept=vector)


def _compared(client: Client, prompt: str, options: dict[str, Any], swept: str | None = None) -> Output:
    """Compares. swept: the vector of a sweep, whose readout a chart shows."""

    def printed() -> None:
        answer = tables.live_comparison(client, options, console) if console.is_terminal else client.compare(**options)
        console.print(tables.comparison_table(answer, prompt))
        _print_notes(f"seed {answer.seed}, model {answer.model}", *(arm.steering for arm in answer.arms))
        if swept is not None and console.is_terminal:
            console.print(tables.sweep_chart(answer, swept))

    return lambda: tables.dumped(client.compare(**options)), printed


def _print_notes(first: str, *applied: AppliedSteering) -> None:
    stderr.print(first, style="dim")
    for steering in applied:
        for line in tables.applied_lines(steering):
            stderr.print(line)


@command
def replay(
    client: Client,
    record: Annotated[Path, file_argument("JSON file: a response, or its steering.record.")],
    directions: Annotated[
        Path | None, file_option("JSON file: the inline directions that the response was given.")
    ] = None,
) -> Output:
    """Generate the same tokens again from the record of an earlier response."""
    content: Any = load_json(text_of(record), record.name)
    if isinstance(content, dict) and "steering" in content:
        content = content["steering"].get("record") if isinstance(content["steering"], dict) else None
    if not isinstance(content, dict):
        raise InvalidRequest(f"{record.name}: expected a response with steering.record, or that record")
    answer = client.replay(content, directions=[] if directions is None else _directions_of(directions))
    return tables.dumped(answer), lambda: print_exactly("".join(f"{safe(one.text)}\n" for one in answer.choices))


def _directions_of(file: Path) -> list[dict[str, Any]]:
    content: Any = load_json(text_of(file), file.name)
    directions = content if isinstance(content, list) else [content]
    if not all(isinstance(one, dict) for one in directions):
        raise InvalidRequest(f"{file.name}: expected an object with directions, or a list of them")
    return directions


class BatchCounts(Answer):
    """The result of a batch: how many of its requests succeeded and failed."""

    succeeded: int
    failed: int


OUTPUT = Route("GET /v1/jobs/{job_id}/output", bytes)


@command
def batch(
    client: Client,
    requests: Annotated[Path, file_argument("JSON lines: the fields of POST /v1/generate, and an id if wanted.")],
    out: Annotated[Path, output_option("File to write: a line per request, in the same order.", "--out", "-o")],
    scores: Annotated[bool, Option("--score", help="The lines have the fields of POST /v1/score.")] = False,
) -> None:
    """Answer or score many prompts in the background. Ctrl-C cancels; what was finished is written all the same."""
    job = (client.start_score_batch if scores else client.start_batch)(requests.read_bytes())
    try:
        result = tables.followed(client, job, TypeAdapter(BatchCounts))
    finally:
        out.write_bytes(client.send(Call(OUTPUT.arguments({"job_id": job.id}), OUTPUT.read, {})))
    stderr.print(shown(f"wrote {out}: {result.succeeded} answers"))
    if result.failed:
        stderr.print(shown(f"{result.failed} requests failed; their lines have an error", "yellow"))


@command
def readout(
    client: Client,
    vector: Annotated[str, "The vector to read against: name, or name@version."],
    text: Annotated[str, "The text to read."],
    layers: Layers = "recommended",
    hook: AtHook = "residual",
) -> Output:
    """Measure a concept at each token of a text, in natural scales."""
    answer = client.readout([text], vectors=[vector], layers=layers_of(layers), hook=hook)
    print_warnings(answer.warnings)
    return answer, [tables.readout_table(answer, vector)]


@command
def lens(
    client: Client,
    asked: Asked,
    steer: Steer = None,
    steer_layers: SteerLayers = None,
    steering: Steering = None,
    layers: Annotated[str, "Layers to show: all, or 12,13."] = "all",
    top_k: Annotated[int | None, "Predictions per layer; default: 5, or what the server lists at most."] = None,
    token: Annotated[int, "Which token of the prompt; -1 is the last."] = -1,
) -> Output:
    """Show the next token predicted from each layer, unsteered and steered."""
    interventions = steering_of(steer, steer_layers, steering=steering) or []
    fields = asked.fields() | given(steering=interventions, layers=layers_of(layers), top_k=top_k)
    answer = client.logit_lens(**fields)

    def printed() -> None:
        if not -len(answer.tokens) <= token < len(answer.tokens):
            raise BadParameter(f"the prompt has {len(answer.tokens)} tokens", param_hint="--token")
        console.print(tables.lens_table(answer, token))
        print_warnings(answer.steering.warnings)

    return answer, printed


@command
def score(
    client: Client,
    asked: Asked,
    continuation: Annotated[
        list[str] | None, "A text that may follow the prompt, with its leading space; repeatable."
    ] = None,
    steer: Steer = None,
    steering: Steering = None,
) -> Output:
    """Show how probable continuations of the prompt are to the model, or the prompt itself without --continuation."""
    interventions = steering_of(steer, steering=steering) or []
    if not continuation and (asked.system, asked.prefill) != (None, None):
        raise BadParameter("--system and --prefill need --continuation: without it the prompt is scored as it is")
    if continuation:
        answer = client.score(continuations=continuation, steering=interventions, **asked.fields())
    else:
        answer = client.score(texts=[asked.prompt], steering=interventions)
    rows = [
        [one.text, f"{one.sum:.2f}", f"{len(one.token_ids)}", f"{one.sum / max(len(one.token_ids), 1):.2f}", "yes" if one.all_greedy else ""]
        for one in answer.scores or ()
    ]  # fmt: skip
    return answer, [tables.text_table(("text", "log p", "tokens", "per token", "greedy"), rows)]


@command
def activations(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    position: Annotated[
        str, "last, mean, response_mean, all, an offset from the end, span:PHRASE or attending:PHRASE."
    ] = "last",
    hook: AtHook = "residual",
    head: Annotated[int | None, "With --hook attention: one head, before the output projection."] = None,
    texts: Texts = None,
    file: TextFile = None,
    output: Annotated[Path, output_option("File to write.", "--output", "-o")] = Path("activations.safetensors"),
    layers: ListedLayers = "all",
    dtype: Annotated[str, "float32, float16 or bfloat16."] = "float32",
    steer: Steer = None,
) -> None:
    """Write the activations of texts, by layer, to a safetensors file."""
    options = {
        "position": position_of(position),
        "hook": hook,
        "head": head,
        "layers": layers_of(layers),
        "dtype": dtype,
    }
    content = client.activations(given_texts(texts, file), steering=steering_of(steer) or [], **options)
    output.write_bytes(content)
    stderr.print(shown(f"wrote {output}: {len(content):,} bytes"))


@command
def explain(
    client: Client,
    texts: Texts = None,
    file: TextFile = None,
    layers: Annotated[str, "recommended, or 12,13."] = "recommended",
    position: Annotated[ScorePosition, "Score of a text: mean or max over its tokens."] = "mean",
    threshold: Annotated[float, "Smallest absolute z-score that is listed."] = 2.0,
    vector: Annotated[list[str] | None, "Read this vector instead of the library; repeatable."] = None,
    turns: Annotated[
        bool, Option("--turns", help="Read the assistant's turns of conversations, and show each.")
    ] = False,
) -> Output:
    """List the concepts of the library that stand out in texts against neutral text."""
    read = given_texts(texts, file)
    chosen = None if layers == "recommended" else layers_of(layers)
    answer = client.explain(read, layers=chosen, position=position, threshold=threshold, vectors=vector, turns=turns)
    rows = []
    for text, explained in zip(read, answer.texts, strict=True):
        for one in explained.concepts:
            drift = " ".join(_z(turn.z) for turn in one.turns or ())
            words = " ".join(token.text.strip() for token in one.tokens)
            rows.append([_short(text), one.vector, f"{one.layer}", _z(one.z), *([drift] if turns else []), words])
    print_warnings(answer.warnings)  # --json prints them, too
    columns = ("text", "vector", "layer", "z", *(["z by turn"] if turns else []), "tokens")
    return answer, [tables.text_table(columns, rows, "nothing stands out")]


@command
def clusters(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    texts: Texts = None,
    file: TextFile = None,
    layer: Annotated[int | None, "Layer to read; default: the middle one."] = None,
    method: Annotated[str, "kmeans or hdbscan."] = "kmeans",
    count: Annotated[int | None, Option("--clusters", help="kmeans: how many; default: by silhouette.")] = None,
    min_size: Annotated[int | None, "hdbscan: size of the smallest cluster."] = None,
    position: Annotated[
        str, "last, mean, response_mean, an offset from the end, span:PHRASE or attending:PHRASE."
    ] = "mean",
    seed: Annotated[int, "The same seed gives the same clusters."] = 0,
) -> Output:
    """Group texts by their activations, with the vector nearest to each difference of groups."""
    options: dict[str, Any] = {"layer": layer, "method": method, "clusters": count, "min_size": min_size, "seed": seed}
    answer = client.clusters(given_texts(texts, file), position=position_of(position), **options)
    rows = [
        [f"{one.index}", f"{one.size}", "\n".join(_short(example.text) for example in one.examples)]
        for one in answer.clusters
    ]
    pairs = []
    for pair in answer.pairs:
        nearest = "" if pair.nearest is None else f"  {pair.nearest.vector} {pair.nearest.cosine:+.2f}"
        pairs.append(shown("{} to {}".format(*pair.clusters) + f": distance {pair.distance:.1f}{nearest}"))
    print_warnings(answer.warnings)
    return answer, [tables.text_table(("cluster", "texts", "examples"), rows), *pairs]


def _z(value: float) -> str:
    """Returns a z as a table shows it: a dash where it is not known."""
    return "-" if isnan(value) else f"{value:+.1f}"


def _short(text: Any) -> str:
    written = text if isinstance(text, str) else str(text[-1].get("content", ""))
    return written if len(written) <= SHOWN_CHARACTERS else written[:SHOWN_CHARACTERS] + "..."


@command
def draw_map(
    connect: Connect,
    file: Annotated[Path, file_argument("CSV with the column text, and label if wanted; or one text a line.")],
    out: Annotated[
        Path | None,
        output_option("File to write: .html (slider over the layers) or .png; default: map.html, none with --json."),
    ] = None,
    layers: ListedLayers = "all",
    method: Annotated[str, "pca, tsne or umap."] = "pca",
    position: Annotated[str, "last, mean, an offset from the end, span:PHRASE or attending:PHRASE."] = "mean",
) -> Output:
    """Draw texts in the latent space, layer by layer."""
    texts, labels = texts_and_labels(file)
    options: dict[str, Any] = {"layers": layers_of(layers), "position": position_of(position), "labels": labels or None}
    path = out or Path("map.html")
    if path.suffix not in (".html", ".png"):
        raise BadParameter(f"expected a file ending in .html or .png, got {path.name}", param_hint="--out")
    drawn = connect().latent_space(texts, method=method, embeddings=True, **options)

    def written() -> "LatentMap":
        if path.suffix == ".html":
            path.write_text(drawn.page(texts, labels), encoding="utf-8")
        else:
            _write_png(path, drawn, labels)
        return drawn

    def printed() -> None:
        print_warnings(written().warnings)
        stderr.print(shown(f"wrote {path}"))

    return drawn if out is None else written, printed


def texts_and_labels(file: Path) -> tuple[list[str], list[str] | None]:
    """Reads texts and labels: a CSV with a column `text` and perhaps `label`, or one text per line. Raises InvalidRequest."""
    if file.suffix != ".csv":
        return [line for _, line in lines_of(file)], None
    names, rows = csv_rows(file)
    if not rows or "text" not in names:
        raise InvalidRequest(f"{file.name} has no column 'text'; its first line names the columns", param="file")
    texts = [row["text"] or "" for _, row in rows]
    return texts, [row["label"] or "" for _, row in rows] if "label" in names else None


def _write_png(out: Path, drawn: "LatentMap", labels: list[str] | None) -> None:
    """Draws evenly spaced layers next to each other. Raises InvalidRequest when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional
    except ImportError:
        raise InvalidRequest("--out FILE.png needs matplotlib: pip install matplotlib", param="out") from None
    layers = layers_of_map(drawn)
    points = aligned([layer for _, layer, _ in layers])
    count = min(PANELS, len(layers))
    chosen = [round(index * (len(layers) - 1) / max(count - 1, 1)) for index in range(count)]
    figure = Figure(figsize=(3.0 * count, 3.3), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    names = labels or [""] * len(points[0])
    for axis, index in zip(axes, chosen, strict=True):
        for name in sorted(set(names)):
            members = [point for point, label in zip(points[index], names, strict=True) if label == name]
            axis.scatter([x for x, _ in members], [y for _, y in members], s=12, alpha=0.75, label=name)
        title, _, auroc = layers[index]
        axis.set_title(title + ("" if auroc is None else f", AUROC {auroc:.2f}"), fontsize=9)
        axis.set(xticks=[], yticks=[])
    if labels:
        axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=150)


@command
def card(
    client: Client, name: VectorName, out: Annotated[Path, output_option("File to write.")] = Path("card.html")
) -> None:
    """Write the quality card of a vector as one HTML page."""
    vector = client.get_vector(name)
    out.write_text(page(vector.id, card_html(vector)), encoding="utf-8")
    stderr.print(shown(f"wrote {out}"))
