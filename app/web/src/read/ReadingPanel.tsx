import { change } from "../compare/draft";
import { addVector } from "../compare/store";
import { open } from "../frame/places";
import { vectorNamed } from "../frame/vectors";
import { bulkOf, fullScale, magnitude, meanOf, medianOf, plain, signed } from "../maths/scales";
import { Button } from "../ui/Button";
import { Chart } from "../ui/Chart";
import { busy, chosen, knownLayers, layer, readAllLayers, reading, shownScores } from "./store";
import type { Turn } from "./turns";

/** The text coloured by one vector at one layer, the curve over it, and the way to steering against it. */
export function ReadingPanel() {
  const name = chosen.value;
  if (name === null) return null;
  return (
    <div class="stack">
      <section class="panel stack" aria-label={`Reading of ${name}`}>
        <div class="row between">
          <h2>{name}</h2>
          <button type="button" onClick={() => steerAgainst(name)}>
            Steer against this
          </button>
        </div>
        <LayerPicker name={name} />
        <Legend />
        <ColouredTurns />
      </section>
      <Curves name={name} />
    </div>
  );
}

/** Scores of the words, around what is usual for this text: the middle of the scale is the mean of the text. */
function centred(): { scores: readonly (number | null)[]; full: number; middle: number } {
  const scores = shownScores.value;
  const shown = (reading.value?.turns ?? []).flatMap((turn) => turn.tokens).filter((token) => token.index > 0);
  const values = shown.map((token) => scores[token.index]).filter((one): one is number => typeof one === "number");
  const standout = reading.value?.standouts.find((one) => one.vector === chosen.value);
  const vector = chosen.value ? vectorNamed(chosen.value) : undefined;
  const middle = (vector as { centred?: boolean } | undefined)?.centred ? 0 : (meanOf(values) ?? standout?.mean ?? 0);
  const full = fullScale(
    values.map((value) => value - middle),
    0.5,
  );
  return { scores, full, middle };
}

function ColouredTurns() {
  const { scores, full, middle } = centred();
  return (
    <>
      {(reading.value?.turns ?? []).map((turn, index) => (
        <div key={index}>
          {turn.role !== "text" && <h3 class="small muted">{turn.role}</h3>}
          <p class="tokens" dir="auto">
            {turn.tokens.map((token) => {
              const score = scores[token.index];
              const value = typeof score === "number" && token.index > 0 ? score - middle : 0;
              return (
                <span
                  key={token.index}
                  class={value < 0 ? "token below" : "token above"}
                  style={{ "--m": magnitude(value, full) }}
                  title={signed(score)}
                >
                  {token.text}
                </span>
              );
            })}
          </p>
        </div>
      ))}
    </>
  );
}

function Legend() {
  return (
    <span class="row small legend">
      <span class="below" style={{ "--m": 1 }}>
        toward −
      </span>
      <span>usual for this text</span>
      <span class="above" style={{ "--m": 1 }}>
        toward +
      </span>
    </span>
  );
}

function LayerPicker({ name }: { name: string }) {
  const layers = knownLayers.value;
  if (layers.length < 2)
    return (
      <div class="row">
        <span>layer {layer.value}</span>
        <Button kind="quiet" disabled={busy.value} onClick={() => void readAllLayers(name)}>
          Read at every layer
        </Button>
      </div>
    );
  return (
    <label class="row">
      <span>Layer</span>
      <input
        type="range"
        class="grow"
        min={0}
        max={layers.length - 1}
        value={Math.max(layers.indexOf(layer.value ?? 0), 0)}
        onInput={(event) => {
          layer.value = layers[event.currentTarget.valueAsNumber] ?? null;
        }}
      />
      <output class="number">{layer.value}</output>
    </label>
  );
}

function Curves({ name }: { name: string }) {
  const scores = shownScores.value;
  const turns = reading.value?.turns ?? [];
  const tokens = turns.flatMap((turn) => turn.tokens).filter((token) => token.index > 0);
  const values = tokens.map((token) => scores[token.index] ?? null);
  return (
    <section class="panel charts" aria-label="Curves">
      <Chart
        title={`${name} over the words`}
        x={tokens.map((_, index) => index)}
        xLabel="word"
        yRange={bulkOf(values)}
        series={[
          { label: "each", values, look: "faint" },
          { label: "smoothed", values: smoothed(values), look: "strong" },
        ]}
        describe={(index) => `${tokens[index]?.text.trim() ?? ""}: ${signed(values[index])}`}
      />
      {turns.length > 1 && (
        <Chart
          title={`${name} over the turns`}
          x={turns.map((_, index) => index + 1)}
          xLabel="turn"
          series={[{ label: "mean", values: turns.map((turn) => turnMean(turn, scores)), look: "strong" }]}
          describe={(index) => `turn ${index + 1}, ${turns[index]?.role}: ${plain(turnMean(turns[index]!, scores))}`}
        />
      )}
    </section>
  );
}

function turnMean(turn: Turn, scores: readonly (number | null)[]): number | null {
  return meanOf(turn.tokens.filter((token) => token.index > 0).map((token) => scores[token.index]));
}

function smoothed(values: readonly (number | null)[]): (number | null)[] {
  const reach = 3;
  return values.map((_, index) => medianOf(values.slice(Math.max(0, index - reach), index + reach + 1)));
}

/** Opens Compare with the vector against what the text says; a conversation is asked again from its last question. */
function steerAgainst(name: string): void {
  const vector = vectorNamed(name);
  if (!vector) return;
  const z = reading.value?.standouts.find((one) => one.vector === name)?.z ?? 0;
  change({ controls: [], instruction: null, reader: null });
  addVector(vector, z > 0 ? -1 : 1);
  const source = reading.value?.source;
  if (source && "messages" in source) {
    const last = source.messages.findLastIndex((message) => message.role === "user");
    const question = source.messages[last];
    if (question) change({ prompt: question.content, history: source.messages.slice(0, last), raw: false });
  }
  open("compare");
}
