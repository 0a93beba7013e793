import "../styles/space.css";
import { effect, untracked } from "@preact/signals";
import { useEffect, useLayoutEffect } from "preact/hooks";
import { stopTasks } from "../core/jobs";
import { rememberState } from "../core/places";
import { vectorByName, vectors, vectorsAwaited } from "../core/vectors";
import { DocLink, useActions } from "../frame/dialogs";
import { followLink, LinkProblem } from "../frame/ShareLink";
import { Button } from "../ui/Button";
import { focusNext } from "../ui/focus";
import { ErrorNote, Warnings } from "../ui/Note";
import { FilmStrip } from "./FilmStrip";
import { Legend } from "./Legend";
import { LensPanel } from "./LensPanel";
import { Playhead, Separability } from "./Playhead";
import { Scatter } from "./Scatter";
import { Selection } from "./Selection";
import { SpaceControls } from "./SpaceControls";
import { Story, storyOver, storyShown } from "./Story";
import {
  ALONG_VECTOR,
  busy,
  draw,
  drawn,
  error,
  maps,
  method,
  playhead,
  playing,
  restoreSpace,
  scoredVector,
  scoresBusy,
  scoresError,
  setName,
  settings,
  stopDrawing,
  vector,
} from "./store";
import { VectorMap } from "./VectorMap";

/** Whether the vector of the chosen texts was offered. From then on the choice is the user's. */
let offered = false;

/** Draws the map the first time, along the vector of the chosen texts where the library has one. A map that was asked for before the
 * library was read stays as it is, and the vector can be chosen. */
function drawFirst(): void {
  const known = vectorByName.value.has(setName.value);
  if (known && !offered && vector.value === null) vector.value = setName.value;
  offered = true;
  if (drawn.value !== null || busy.value) return;
  if (known) {
    vector.value = setName.value;
    method.value = ALONG_VECTOR;
  }
  void draw();
}

function stopAll(): void {
  playing.value = false;
  stopTasks("space");
  stopDrawing();
}

/** Restores a link, which also states the vector. The tool stays, also once a change has taken the link out of the address. */
export function restoreLink(state: unknown): void {
  storyOver.value = true;
  offered = true;
  restoreSpace(state);
}

function tellAgain(): void {
  rememberState("space", ""); // a link in the address would keep the tool
  storyOver.value = false;
  focusNext(".story h2");
}

/** Space: a story at first, then the tool. */
export default function Space() {
  return storyShown() ? <Story /> : <Tool />;
}

/** Where texts lie in the model's activations, layer by layer. */
function Tool() {
  useEffect(() => useActions({ run: () => void draw(), stop: stopAll }), []);
  useLayoutEffect(() => {
    const stop = effect(() => {
      if (vectors.value !== null) untracked(drawFirst);
    });
    return () => {
      stop();
      playing.value = false;
    };
  }, []);
  useEffect(() => followLink("space", restoreLink, settings), []);
  return (
    <>
      <LinkProblem />
      <p class="what" tabIndex={-1}>
        Inside the model every text is a point with hundreds of coordinates, and each layer moves it. This is latent
        space: texts that the model takes to be alike lie near each other. The first picture is the layer at which it
        tells the labels apart best; move the layer to see how it gets there. <DocLink page="latent_space" />{" "}
        <Button label="The story again" kind="quiet" onClick={tellAgain} />
      </p>
      <SpaceControls />
      <ErrorNote error={error.value ?? scoresError.value} />
      <Warnings of={drawn.value?.answer.warnings} />
      <div class="space" aria-busy={busy.value || scoresBusy.value || vectorsAwaited.value}>
        <section class="panel stack" aria-label="Map">
          <Playhead />
          {drawn.value ? (
            <div class={busy.value ? "stale" : ""}>
              <Scatter />
            </div>
          ) : (
            <p class="muted scatter empty">
              {busy.value || vectorsAwaited.value ? "Reading the texts" : <NothingDrawn />}
            </p>
          )}
          <FilmStrip />
          {method.value === ALONG_VECTOR && <Axes />}
          <Legend />
        </section>
        <div class="stack">
          <Separability />
          <Selection />
        </div>
      </div>
      <LensPanel />
      <VectorMap />
    </>
  );
}

function NothingDrawn() {
  if (vectors.value !== null) return <span>Nothing drawn yet</span>;
  return <span>Nothing drawn yet: the ready sets need a key that may see the library. Your own texts do not.</span>;
}

/** Says what the axes of a map along a vector mean. */
function Axes() {
  const embeddings = playhead.value < 1 && maps.value[0]?.layer == null;
  return (
    <p class="small muted">
      {embeddings &&
        `${scoredVector.value} has no direction at the input embeddings, so all texts lie in the middle. Move the layer. `}
      Right: more {scoredVector.value}. Up and down: what differs most among the texts otherwise.
    </p>
  );
}
