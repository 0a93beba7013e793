import { card, vectors } from "../core/server";
import { placeLabels, scaledMap } from "../maths/geometry";
import { domainOf, linear } from "../maths/scales";
import { Button, ErrorNote, Panel, scored, Table, Warnings } from "../ui/parts";
import { hints } from "../words.json";
import { type Similarities, shownSimilar, similar } from "./store";

/** The ways of showing the cosines of all vectors: how many vectors each takes, its name and its heading, and what it says. */
const VIEWS = {
  table: [2, "Similarity", "Similarity", "Compare all vectors", "Compare again", hints.similarity],
  map: [3, "Map of vectors", "Vectors by similarity", "Draw the map of all vectors", "Draw again", hints.vectorMap],
} as const;

/** How like the vectors of the library are: the cosine of every pair as a table of colours and numbers, or all on one map, where near
 * means that their directions are alike or opposite. Says why the cosines could not be read, and what is missing among them. */
function Similar({ as }: { as: keyof typeof VIEWS }) {
  const [shown, all] = [shownSimilar.value, vectors.value ?? []];
  const [least, label, title, first, again, hint] = VIEWS[as];
  if (all.length < least) return null;
  const head = ["", ...(shown?.names ?? [])];
  const rows = shown?.cosine.map((row, i) => [
    shown.names[i],
    ...row.map((value, j) => (i === j ? null : scored(value))),
  ]);
  return (
    <Panel label={label}>
      <div class="row between">
        <h2>{title}</h2>
        <Button label={shown ? again : first} disabled={similar.busy.value} onClick={() => similar.ask(all)} />
      </div>
      <p class="small muted">{hint}</p>
      <ErrorNote error={similar.error.value} />
      <Warnings of={shown?.warnings} />
      {shown && shown.names.length < all.length && (
        <p class="small muted">{`The ${as} has ${shown.names.length} of ${all.length} vectors.`}</p>
      )}
      {shown && as === "map" && <Places {...shown} />}
      {rows && as === "table" && <Table label="Table of similarities" look="matrix" head={head} rows={rows} />}
    </Panel>
  );
}

export const Similarity = () => <Similar as="table" />;
export const VectorMap = () => <Similar as="map" />;

const WIDTH = 960;
const HEIGHT = 340;
const LONGEST = 20;

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
