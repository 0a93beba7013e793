import "../styles/read.css";
import { useEffect } from "preact/hooks";
import type { Message } from "../api/client";
import { change as changeDraft } from "../compare/draft";
import { addVector } from "../compare/store";
import { open } from "../core/places";
import { poleAt, polesOf, vectorNamed, vectors, vectorsAwaited } from "../core/server";
import { useActions } from "../frame/dialogs";
import { followLink, LinkProblem, ShareLink } from "../frame/ShareLink";
import { bulkOf, fullScale, meanOf, medianOf, plain, signed } from "../maths/scales";
import { Chart } from "../ui/Chart";
import { of, Segments, Slider, TextBox } from "../ui/fields";
import { Ask, Button, Each, ErrorNote, lookOf, Panel, Remove, ScoreDial, ScoreLegend, Warnings } from "../ui/parts";
import { hints, readKinds } from "../words.json";
import * as store from "./store";
import { busy, choose, chosen, knownLayers, layer, readAllLayers, reading, shownScores } from "./store";

/** Read: which concepts of the library stand out in a text, and where. */
export default function Read() {
  const [found, busy] = [store.reading.value, store.busy.value];
  useEffect(() => useActions({ run: () => void store.read(), stop: store.stop }), []);
  useEffect(() => followLink("read", store.restoreRead, store.readState), []);
  return (
    <>
      <LinkProblem />
      <WhatIsRead />
      <ErrorNote error={store.error.value} />
      <Warnings of={found?.warnings} />
      {found ? (
        <div class={`read ${busy ? "stale" : ""}`} aria-busy={busy}>
          <Standouts />
          <ReadingPanel />
        </div>
      ) : (
        <p class="muted">{hints.read}</p>
      )}
    </>
  );
}

function WhatIsRead() {
  const noVectors = (vectors.value ?? []).length === 0;
  const missing = store.missing.value;
  const { messages } = store;
  const change = (index: number, part: Partial<Message>) =>
    (messages.value = messages.value.map((message, at) => (at === index ? { ...message, ...part } : message)));
  const remove = (index: number) => (messages.value = messages.value.filter((_, at) => at !== index));
  const add = () => {
    const role = messages.value.at(-1)?.role === "user" ? "assistant" : "user";
    messages.value = [...messages.value, { role, content: "" }];
  };
  const words = { label: "Read it", waiting: "Reading", disabled: noVectors || missing !== null };
  return (
    <Panel label="What is read">
      <Segments label="Kind" options={readKinds} {...of(store.kind)} />
      {store.kind.value === "text" ? (
        <TextBox label="Text to read" rows={4} {...of(store.text)} />
      ) : (
        <div class="stack">
          {messages.value.map(({ role, content }, index) => (
            <div key={index} class="message">
              <select
                aria-label={`Role of message ${index + 1}`}
                value={role}
                onChange={(event) => change(index, { role: event.currentTarget.value as (typeof ROLES)[number] })}
              >
                <Each of={ROLES} row={(one) => <option key={one}>{one}</option>} />
              </select>
              <TextBox
                label={`Message ${index + 1}`}
                value={content}
                onChange={(text) => change(index, { content: text })}
              />
              <Remove label={`Remove message ${index + 1}`} onClick={() => remove(index)} />
            </div>
          ))}
          <Button label="Add a message" onClick={add} />
        </div>
      )}
      <div class="row">
        <Ask query={store.question} kind="primary" {...words} onAsk={store.read} />
        <ShareLink view="read" state={store.readState} />
        {noVectors && !vectorsAwaited.value && (
          <>
            <span class="muted">{vectors.value ? hints.nothingToRead : hints.noVectors}</span>
            {vectors.value && <Button label="Make a vector" onClick={() => open("make")} />}
          </>
        )}
        {!noVectors && missing && <span class="small muted">{missing}</span>}
      </div>
    </Panel>
  );
}

const ROLES = ["user", "assistant", "system"] as const;

/** The text coloured by one vector at one layer, the curve over it, and the way to steering against it. */
function ReadingPanel() {
  const name = chosen.value;
  if (name === null) return null;
  const [poles, layers] = [polesOf(name), knownLayers.value];
  const at = Math.max(layers.indexOf(layer.value ?? 0), 0);
  const readAll = () => readAllLayers(name);
  const goTo = (to: number) => (layer.value = layers[to] ?? null);
  const scores = shownScores.value;
  const turns = reading.value?.turns ?? [];
  const tokens = turns.flatMap((turn) => turn.tokens).filter((token) => token.index > 0);
  const values = tokens.map((token) => scores[token.index] ?? null);
  // The colours are around the middle between the poles, else around what is usual for this text: its mean.
  const known = values.filter((one) => one !== null);
  const standout = reading.value?.standouts.find((one) => one.vector === name);
  const [middle, usual] = vectorNamed(name)?.centred ? [0, "middle"] : [meanOf(known) ?? standout?.mean ?? 0, "usual for this text"]; // biome-ignore format: one line
  const away = known.map((value) => value - middle);
  const full = fullScale(away, 0.5);
  const smooth = values.map((_, at) => medianOf(values.slice(Math.max(0, at - REACH), at + REACH + 1)));
  const means = turns.map((turn) => meanOf(turn.tokens.flatMap(({ index }) => (index > 0 ? [scores[index]] : []))));
  const markOf = (index: number) => {
    const score = scores[index];
    return lookOf({ score: typeof score === "number" && index > 0 ? score - middle : null, full });
  };
  return (
    <div class="stack">
      <section class="panel stack" aria-label={`Reading of ${name}`}>
        <div class="row between">
          <h2>{name}</h2>
          <Button label="Steer against this" onClick={() => steerAgainst(name)} />
        </div>
        {layers.length < 2 ? (
          <div class="row">
            <span>layer {layer.value}</span>
            <Button label="Read at every layer" kind="quiet" disabled={busy.value} onClick={readAll} />
          </div>
        ) : (
          <label class="row">
            <span>Layer</span>
            <Slider kind="grow" max={layers.length - 1} value={at} onMove={goTo} />
            <output class="number">{layer.value}</output>
          </label>
        )}
        <ScoreLegend below={poles.negative} middle={usual} above={poles.positive} />
        {turns.map((turn, index) => (
          <div key={index}>
            {turn.role !== "text" && <h3 class="small muted">{turn.role}</h3>}
            <p class="tokens" dir="auto">
              {turn.tokens.map((token) => (
                <span key={token.index} {...markOf(token.index)} title={signed(scores[token.index])}>
                  {token.text}
                </span>
              ))}
            </p>
          </div>
        ))}
      </section>
      <section class="panel charts" aria-label="Curves">
        <Chart
          title={`${name} over the words`}
          x={tokens.map((_, index) => index)}
          xLabel="word"
          yRange={bulkOf(values)}
          series={{ faint: values, strong: smooth }}
          describe={(index) => `${tokens[index]?.text.trim() ?? ""}: ${signed(values[index])}`}
        />
        {turns.length > 1 && (
          <Chart
            title={`${name} over the turns`}
            x={turns.map((_, index) => index + 1)}
            xLabel="turn"
            series={{ strong: means }}
            describe={(index) => `turn ${index + 1}, ${turns[index]?.role}: ${plain(means[index])}`}
          />
        )}
      </section>
    </div>
  );
}

const REACH = 3;

/** Opens Play with the vector against what the text says, beside the vectors that are set there; a conversation is asked again from its
 * last question, its system message where Play has one. */
export function steerAgainst(name: string): void {
  const vector = vectorNamed(name);
  if (!vector) return;
  const z = reading.value?.standouts.find((one) => one.vector === name)?.z ?? 0;
  changeDraft({ instruction: null, reader: name });
  addVector(vector, z > 0 ? -1 : 1);
  const source = reading.value?.source;
  if (source && "messages" in source) {
    const last = source.messages.findLastIndex((message) => message.role === "user");
    const question = source.messages[last];
    const [first] = source.messages;
    const system = first?.role === "system" ? { system: first.content } : {};
    const history = source.messages.slice("system" in system ? 1 : 0, last);
    if (question) changeDraft({ ...system, prompt: question.content, history, turns: [], raw: false });
  }
  open("compare");
}

/** Deviations from neutral texts that count as standing out. */
const STANDS_OUT = 2;
const FULL = 8;

/** The concepts of the library, what stands out first, in the words of the pole to which the text leans. */
function Standouts() {
  const list = reading.value?.standouts ?? [];
  const strong = list.filter((one) => stands(one.z)).length;
  return (
    <section class="panel stack" aria-label="Concepts">
      <h2>{strong === 0 ? "Nothing stands out" : `${strong} of ${list.length} stand out`}</h2>
      <ul class="standouts">
        {list.map((one) => (
          <li key={one.vector}>
            <Button
              pressed={one.vector === chosen.value}
              onClick={() => choose(one.vector)}
              title={`Read at layer ${one.layer}; in standard deviations of neutral texts`}
            >
              <span class="name">
                <strong>{stands(one.z) ? poleAt(one.vector, one.z ?? 0) : "not unusual"}</strong>{" "}
                <span class="small muted">{one.vector}</span>
              </span>
              <ScoreDial score={one.z} full={FULL} digits={1} />
              {stands(one.z) && one.carriers.length > 0 && (
                <span class="carriers small muted">in: {one.carriers.join(", ")}</span>
              )}
            </Button>
          </li>
        ))}
      </ul>
      <p class="small muted">{hints.standouts}</p>
    </section>
  );
}

const stands = (z: number | null): boolean => Math.abs(z ?? 0) >= STANDS_OUT;
