import type { Signal } from "@preact/signals";
import { offer } from "../api/client";
import { capabilities, vectors } from "../core/server";
import { ShareLink } from "../frame/ShareLink";
import { type Bound, ChoiceField, FileButton, named, of, optional, Segments, TextArea } from "../ui/fields";
import { Button, Panel } from "../ui/parts";
import { caveats, colours, hints, positions, projections } from "../words.json";
import { svgOf } from "./draw";
import { shown } from "./Scatter";
import { scene } from "./scene";
import * as space from "./store";
import { layerName, maps, playhead, spaceTable } from "./store";

/** What a person calls a way of drawing. */
const methodWords = (name: string) => projections[name as keyof typeof projections] ?? name;

const DIMENSIONS = [[2, "2-D"], [3, "3-D"]] as const; // biome-ignore format: one line

/** What is drawn: the texts, the method, the dimensions, the vector and the colours. */
export function SpaceControls() {
  const { ALONG_VECTOR, setName, method, dims, vector, colourBy, position, busy, scoresBusy } = space;
  const ways = [...(capabilities.value?.projections ?? ["pca"]), ...(vector.value ? [ALONG_VECTOR] : [])];
  const methods = ways.map((name) => [name, methodWords(name)] as const);
  const sets = capabilities.value?.concepts ?? [];
  const known = setName.value === "own" || sets.includes(setName.value) ? sets : [setName.value, ...sets];
  const ready = known.map((name) => [name, `${name} (ready set)`] as const);
  const along = { value: vector.value, onChange: redrawn(space.chooseVector) };
  const colour: Bound<space.ColourBy> = {
    value: colourBy.value,
    onChange: (by) => {
      colourBy.value = by;
      if (by === "score") void space.loadScores();
    },
  };
  const drawn = <T,>(choice: Signal<T>): Bound<T> => ({
    value: choice.value,
    onChange: redrawn((next: T) => (choice.value = next)),
  });
  const empty = space.ownText.value.trim() === "";
  const take = async (file: File) => (space.ownText.value = await file.text());
  const dimensions: Bound<2 | 3> = {
    value: method.value === ALONG_VECTOR ? 2 : dims.value,
    onChange: redrawn((count) => {
      dims.value = count;
      if (count === 3 && method.value === ALONG_VECTOR) method.value = "pca"; // a map along a vector has two dimensions
    }),
  };
  const noScores = vector.value === null ? (["score"] as const) : [];
  return (
    <Panel label="What is drawn">
      <div class="row controls">
        <ChoiceField label="Texts" options={[...ready, ["own", "my texts"]]} {...drawn(setName)} />
        <Segments label="Method" options={methods} {...drawn(method)} />
        <Segments label="Dimensions" options={DIMENSIONS} {...dimensions} />
        <ChoiceField label="Vector" options={[["", "none"], ...named(vectors.value)]} {...optional(along)} />
        <ChoiceField label="Colour" options={colours} disabled={noScores} {...colour} />
        <ChoiceField label="Read at" options={positions} {...drawn(position)} />
      </div>
      <div class="row">
        <ShareLink view="space" state={space.spaceState} />
        <Exports />
        <span role="status" class="small">
          {busy.value ? drawingWords() : scoresBusy.value && "Reading the scores"}
        </span>
        {busy.value && <Button label="Stop" onClick={space.stopDrawing} />}
      </div>
      {method.value in caveats && <p class="small muted">{caveats[method.value as keyof typeof caveats]}</p>}
      {setName.value === "own" && (
        <div class="stack">
          <TextArea label={hints.twoColumns} rows={6} placeholder={hints.ownTexts} {...of(space.ownText)} />
          <div class="row">
            <Button label="Draw" kind="primary" disabled={empty} onClick={() => void space.draw()} />
            <FileButton accept=".csv,.tsv,.txt" take={take} onProblem={(problem) => (space.error.value = problem)}>
              Open a CSV file
            </FileButton>
          </div>
        </div>
      )}
    </Panel>
  );
}

export function drawingWords(): string {
  const { of } = space.drawn.value ?? {};
  const before = of ? ` The picture is still ${methodWords(of.method)} of ${of.set}.` : "";
  return `Drawing ${methodWords(space.method.value)}, which may take minutes for many texts.${before}`;
}

/** Changes what is drawn, and draws it. */
const redrawn =
  <T,>(change: (next: T) => void) =>
  (next: T) => {
    change(next);
    if (space.setName.value !== "own" || space.ownText.value.trim() !== "") void space.draw();
  };

function Exports() {
  if (maps.value.length === 0) return null;
  const name = () => `space-${layerName(Math.round(playhead.value)).replaceAll(" ", "-")}`;
  const picture = () => {
    const canvas = document.querySelector<HTMLCanvasElement>(".scatter canvas");
    canvas?.toBlob((file) => file && offer(file, `${name()}.png`));
  };
  const drawing = () => {
    const text = scene.value && shown.view && svgOf(scene.value, shown.view);
    if (text) offer(new Blob([text], { type: "image/svg+xml" }), `${name()}.svg`);
  };
  const table = () => offer(new Blob([spaceTable()], { type: "text/csv" }), `${name()}.csv`);
  return (
    <>
      <Button label="PNG" hidden=": the picture as a file" kind="quiet" onClick={picture} />
      <Button label="SVG" hidden=": the picture as a drawing" kind="quiet" onClick={drawing} />
      <Button label="CSV" hidden=": the points as a table" kind="quiet" onClick={table} />
    </>
  );
}
