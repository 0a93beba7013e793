import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { stopTasks } from "../core/jobs";
import { capabilities, mayDo, polesAwaited, vectors } from "../core/server";
import { DocLink } from "../frame/dialogs";
import { reducedMotion } from "../frame/theme";
import { clamp, plain, signed } from "../maths/scales";
import { DialFace } from "../ui/Dial";
import { stepped } from "../ui/fields";
import { announce, Button, ErrorNote, focusNext, lookOf, Progress } from "../ui/parts";
import * as saved from "./gallery";
import { gallery, type SavedItem, type SavedStop, shownSaved } from "./gallery";
import { fluencyWord } from "./readback";
import { leaveStarters, makeStarters, starterError, starterProgress, startersLeft } from "./starters";

/** What is seen first: a saved answer that changes along a dial, and more of them below. Nothing is computed for it. */
export function Landing() {
  const { data, error } = gallery;
  useEffect(() => void gallery.load(), [saved.address.value]);
  const items = data.value?.items ?? [];
  const shown = shownSaved.value; // maybe of another model
  const chosen = shown && items[shown.item]?.stops[shown.stop] ? shown : { item: 0, stop: (items[0]?.stops.length ?? 1) - 1 }; // biome-ignore format: one line
  const item = items[chosen.item];
  return (
    <section class="landing stack" aria-label="Saved answers">
      <h2 class="headline" tabIndex={-1}>
        Turn a dial, and the model’s answer changes.
      </h2>
      <ErrorNote error={error.value} />
      {!item && wantsStarters() && <FirstStart />}
      {item && <Hero item={item} index={chosen.item} stop={chosen.stop} />}
      <ul class="gallery" aria-label="More saved answers">
        {saved.cards.value.map(({ item: at, stop }) => (
          <li key={`${at} ${stop}`}>
            <Card item={items[at]!} stop={items[at]!.stops[stop]!} onShow={() => show(at, stop)} />
          </li>
        ))}
      </ul>
      <p class="small muted">
        {data.value && sourceWords(data.value)} A larger one writes better: <code>--model</code>.{" "}
        <DocLink page="playground" />
      </p>
    </section>
  );
}

export function sourceWords({ model, samples }: saved.Gallery): string {
  const what = model === saved.servedModel.value ? "this server runs" : "comes with the server";
  return `The saved answers are of ${model}, which ${what}. A dial shows the one of ${samples} seeds that follows it best. Others gave the same, and a second model tells them apart.`;
}

const touched = signal(false);

function show(item: number, stop: number): void {
  touched.value = true;
  shownSaved.value = { item, stop };
  document.querySelector(".hero")?.scrollIntoView({ block: "nearest" });
}

const STEP_MS = 1800;

/** One saved answer at a time under a large dial. Until it is touched the dial moves by itself, from the middle to its end. */
function Hero({ item, index, stop: at }: { item: SavedItem; index: number; stop: number }) {
  const stop = item.stops[at]!;
  useEffect(() => {
    if (touched.value || reducedMotion()) return;
    return moving(index, item);
  }, [touched.value, item]);
  const go = (share: number) => show(index, nearestStop(item, share));
  const sides = { negative: item.stops[0]!.strength < 0, positive: item.stops.at(-1)!.strength > 0 };
  return (
    <figure class="hero panel">
      <p class="question" dir="auto">
        {item.prompt}
      </p>
      <div class="strength large">
        <DialFace
          poles={item.poles}
          share={saved.shareOf(item, at)}
          sides={sides}
          onMove={go}
          onPick={go}
          aria-label={`Saved answers about ${item.vector}`}
          aria-valuetext={`${signed(stop.strength)}, ${poleOf(item, stop) ?? "plain"}`}
          step="any"
          {...stepped((step) => show(index, clamp(at + step, 0, item.stops.length - 1)))}
        />
      </div>
      <p class="tokens" dir="auto" key={at}>
        {stop.words.map(([text, score], word) => (
          <span key={word} {...lookOf({ score, full: 6 })}>
            {text}
          </span>
        ))}
      </p>
      <figcaption class="row between">
        <span class="sentence">{savedSentence(item, stop)}</span>
        <Live item={item} stop={at} />
      </figcaption>
    </figure>
  );
}

function nearestStop(item: SavedItem, share: number): number {
  const away = item.stops.map((_, stop) => Math.abs(saved.shareOf(item, stop) - share));
  return away.indexOf(Math.min(...away));
}

/** Moves the dial stop by stop from the plain answer to its positive end. Returns what ends it. */
function moving(index: number, { stops }: SavedItem): () => void {
  const zero = stops.findIndex(({ strength }) => strength === 0);
  const go = (stop: number) => () => (shownSaved.value = { item: index, stop });
  const timers = [...stops.keys()].slice(zero).map((stop, step) => setTimeout(go(stop), step * STEP_MS));
  return () => timers.forEach(clearTimeout);
}

const poleOf = ({ poles }: SavedItem, { strength }: SavedStop): string | null =>
  strength === 0 ? null : strength < 0 ? poles.negative : poles.positive;

/** Says what was measured at a stop, over all answers. */
export function savedSentence(item: SavedItem, stop: SavedStop): string {
  const pole = poleOf(item, stop);
  const samples = gallery.data.value?.samples ?? 0;
  if (pole === null) return "The plain answer: nothing is steered.";
  const [mean, half] = stop.shift;
  const { positive, negative } = item.poles;
  const effect =
    Math.abs(mean) > half ? `Clearly more “${mean < 0 ? negative : positive}”` : `No sure effect toward “${pole}”`;
  return `${effect} (${signed(mean)} ± ${plain(half)} over ${samples} answers), ${fluencyWord(stop.perplexity_ratio)}.`;
}

/** Asks the same live, or makes the vectors that it takes. */
function Live({ item, stop }: { item: SavedItem; stop: number }) {
  if (wantsStarters()) return <FirstStart />;
  const live = saved.isLive(item, stop);
  const known = vectors.value !== null && !polesAwaited.value;
  const title = live || !known ? "" : `This server has no vector “${item.vector}” that steers this way`;
  const ask = () => {
    saved.goLive(item, stop);
    focusNext('[aria-label="Answers"]');
  };
  return <Button label="Ask it live" kind="primary" disabled={!live} title={title} onClick={ask} />;
}

/** Whether starter vectors are missing altogether, are being made, or are left to make. */
export const wantsStarters = (): boolean =>
  vectors.value?.length === 0 || starterProgress.value !== null || startersLeft.value;

/** What an empty library shows: one click makes the starter vectors and asks the first live question. It keeps its place meanwhile. */
export function FirstStart() {
  const [making, left, may] = [starterProgress.value, startersLeft.value, mayDo("write")];
  const label = left ? "Make the others" : "Make the starter vectors";
  const title = `Finds ${capabilities.value?.concepts.length ?? 0} vectors in the examples that come with the server; the first takes seconds`;
  const make = () => makeStarters(saved.firstDemonstration());
  return (
    <section class="stack first-start" aria-label="Starter vectors">
      <ErrorNote error={starterError.value} />
      {making && <Progress {...making} onStop={() => stopTasks("compare")} />}
      <div class="row">
        <Button kind="primary" disabled={making !== null || !may} title={title} label={label} onClick={make} />
        {left && <Button label="Close" kind="quiet" onClick={leaveStarters} />}
        {!may && <span class="small muted">The key of this tab lacks the scope write.</span>}
      </div>
    </section>
  );
}

/** An end of a dial with a quote. */
function Card({ item, stop, onShow }: { item: SavedItem; stop: SavedStop; onShow: () => void }) {
  const text = saved.textOf(stop);
  const choose = () => {
    onShow();
    announce(text);
  };
  return (
    <button type="button" class={`saved ${stop.strength < 0 ? "minus" : "plus"}`} onClick={choose}>
      <strong>{poleOf(item, stop)}</strong>
      <span class="small muted" dir="auto">
        {item.prompt}
      </span>
      <q dir="auto">{text.length > 110 ? `${text.slice(0, 110)}…` : text}</q>
    </button>
  );
}
