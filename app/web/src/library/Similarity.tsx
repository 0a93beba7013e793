import { card, vectors } from "../core/server";
import { placeLabels, scaledMap } from "../maths/geometry";
import { domainOf, linear } from "../maths/scales";
import { Button, ErrorNote, Panel, scored, Table, Warnings } from "../ui/parts";
import { hints } from "../words.json";
import { type Similarities, shownSimilar, similar } from "./store";

/** The cosine of every pair of vectors, as a table of colours and numbers. */
export function Similarity() {
  const shown = shownSimilar.value;
  if ((vectors.value ?? []).length < 2) return null;
  const rows = shown?.cosine.map((row, i) => [
    shown.names[i],
    ...row.map((value, j) => (i === j ? null : scored(value))),
  ]);
  return (
    <Panel label="Similarity">
      <SimilarHead title="Similarity" first="Compare all vectors" again="Compare again" />
      <p class="small muted">{hints.similarity}</p>
      <SimilarNotes what="table" />
      {shown && rows && <Table label="Table of similarities" look="matrix" head={["", ...shown.names]} rows={rows} />}
    </Panel>
  );
}

/** The heading of what the cosines of all vectors are shown as, with the button that reads them. */
function SimilarHead({ title, first, again }: { title: string; first: string; again: string }) {
  const label = shownSimilar.value ? again : first;
  return (
    <div class="row between">
      <h2>{title}</h2>
      <Button label={label} disabled={similar.busy.value} onClick={() => similar.ask(vectors.value ?? [])} />
    </div>
  );
}

/** Why the cosines could not be read, and what is missing among them. */
function SimilarNotes({ what }: { what: string }) {
  const [shown, all] = [shownSimilar.value, vectors.value?.length ?? 0];
  const left = shown !== null && shown.names.length < all;
  return (
    <>
      <ErrorNote error={similar.error.value} />
      <Warnings of={shown?.warnings} />
      {left && <p class="small muted">{`The ${what} has ${shown.names.length} of ${all} vectors.`}</p>}
    </>
  );
}

const WIDTH = 960;
const HEIGHT = 340;
const LONGEST = 20;

/** All vectors of the library on one map: near means that their directions are alike or opposite. */
export function VectorMap() {
  if ((vectors.value ?? []).length < 3) return null;
  return (
    <Panel label="Map of vectors">
      <SimilarHead title="Vectors by similarity" first="Draw the map of all vectors" again="Draw again" />
      <p class="small muted">{hints.vectorMap}</p>
      <SimilarNotes what="map" />
      {shownSimilar.value && <Places {...shownSimilar.value} />}
    </Panel>
  );
}

function Places({ names, cosine }: Similarities) {
  const points = scaledMap(cosine.map((row) => row.map((value) => 1 - Math.abs(value ?? 0))));
  const axis = (at: 0 | 1, range: [number, number]) => linear(domainOf(points.map((point) => point[at]), 0.05), range); // biome-ignore format: one line
  const [x, y] = [axis(0, [80, WIDTH - 80]), axis(1, [HEIGHT - 30, 30])];
  const dots = points.map(([px, py]) => [x(px), y(py)] as const);
  const words = names.map((name) => (name.length > LONGEST ? `${name.slice(0, LONGEST - 1)}…` : name));
  const labels = placeLabels(dots, words, WIDTH, HEIGHT);
  return (
    <svg class="vector-map" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="group" aria-label={`Map of ${names.join(", ")}`}>
      {names.map((name, index) => {
        const [[cx, cy], [left, base]] = [dots[index]!, labels[index]!];
        return (
          <a key={name} href="#/make" aria-label={`Open ${name}`} onClickCapture={() => (card.value = name)}>
            <line x1={cx} y1={cy} x2={left} y2={base - 4} />
            <circle cx={cx} cy={cy} r={5} />
            <text x={left} y={base} text-anchor="middle">
              {words[index]}
              <title>{name}</title>
            </text>
          </a>
        );
      })}
    </svg>
  );
}
