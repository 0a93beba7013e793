import "../styles/space.css";
import { effect, untracked } from "@preact/signals";
import { useEffect, useLayoutEffect } from "preact/hooks";
import { stopTasks } from "../core/jobs";
import { rememberState } from "../core/places";
import { vectorByName, vectors, vectorsAwaited } from "../core/server";
import { DocLink, useActions } from "../frame/dialogs";
import { followLink, LinkProblem } from "../frame/ShareLink";
import { VectorMap } from "../library/Similarity";
import { of, Segments } from "../ui/fields";
import { Button, ErrorNote, focusNext, Panel, Warnings } from "../ui/parts";
import { hints, spaceTabs } from "../words.json";
import { LensPanel } from "./LensPanel";
import { FilmStrip, Playhead, Separability } from "./Playhead";
import { Legend, Scatter } from "./Scatter";
import { Selection } from "./Selection";
import { SpaceControls } from "./SpaceControls";
import { Story, storyOver, storyShown } from "./Story";
import * as space from "./store";

/** Whether the vector of the chosen texts was offered. From then on the choice is the user's. */
let offered = false;

/** Draws the map the first time, along the vector of the chosen texts where the library has one. A map that was asked for before the
 * library was read stays as it is, and the vector can be chosen. */
function drawFirst(): void {
  const { setName, vector } = space;
  const known = vectorByName.value.has(setName.value);
  if (known && !offered && vector.value === null) vector.value = setName.value;
  offered = true;
  if (space.drawn.value !== null || space.busy.value) return;
  if (known) {
    vector.value = setName.value;
    space.method.value = space.ALONG_VECTOR;
  }
  void space.draw();
}

function stopAll(): void {
  space.playing.value = false;
  stopTasks("space");
  space.stopDrawing();
}

/** Restores a link, which also states the vector. The tool stays, also once a change has taken the link out of the address. */
export function restoreLink(state: unknown): void {
  storyOver.value = true;
  offered = true;
  space.restoreSpace(state);
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

/** Where texts lie in the model's activations, layer by layer; what it would say there; and the vectors on one map. */
function Tool() {
  useEffect(() => useActions({ run: () => void space.draw(), stop: stopAll }), []);
  useLayoutEffect(() => {
    const stop = effect(() => {
      if (vectors.value !== null) untracked(drawFirst);
    });
    return () => {
      stop();
      space.playing.value = false;
    };
  }, []);
  useEffect(() => followLink("space", restoreLink, space.settings), []);
  return (
    <>
      <LinkProblem />
      <p class="what" tabIndex={-1}>
        {hints.space} <DocLink page="latent_space" />{" "}
        <Button label="The story again" kind="quiet" onClick={tellAgain} />
      </p>
      <Segments label="What is shown" options={spaceTabs} {...of(space.tab)} />
      {space.tab.value === "texts" && <Texts />}
      {space.tab.value === "lens" && <LensPanel />}
      {space.tab.value === "vectors" && <VectorMap />}
    </>
  );
}

function Texts() {
  const { drawn, busy, method, ALONG_VECTOR } = space;
  const waiting = busy.value || vectorsAwaited.value;
  const nothing = `Nothing drawn yet${vectors.value === null ? `: ${hints.noSets}` : ""}`;
  const name = space.scoredVector.value;
  const atInput = space.playhead.value < 1 && space.maps.value[0]?.layer == null;
  return (
    <>
      <SpaceControls />
      <ErrorNote error={space.error.value ?? space.scoresError.value} />
      <Warnings of={drawn.value?.answer.warnings} />
      <div class="space" aria-busy={waiting || space.scoresBusy.value}>
        <Panel label="Map">
          <Playhead />
          {drawn.value ? (
            <div class={busy.value ? "stale" : ""}>
              <Scatter />
            </div>
          ) : (
            <p class="muted scatter empty">{waiting ? "Reading the texts" : nothing}</p>
          )}
          <FilmStrip />
          {method.value === ALONG_VECTOR && (
            <p class="small muted">
              {atInput &&
                `${name} has no direction at the input embeddings, so all texts lie in the middle. Move the layer. `}
              Right: more {name}. Up and down: what differs most among the texts otherwise.
            </p>
          )}
          <Legend />
        </Panel>
        <div class="stack">
          <Separability />
          <Selection />
        </div>
      </div>
    </>
  );
}
