import { card, vectorByName, vectors } from "../core/vectors";
import { type Similarities, similar } from "../library/store";
import { placeLabels, scaledMap } from "../maths/geometry";
import { domainOf, linear } from "../maths/scales";
import { Button } from "../ui/Button";
import { ErrorNote, Warnings } from "../ui/Note";

const WIDTH = 960;
const HEIGHT = 340;

/** All vectors of the library on one map: near means that their directions are alike or opposite. */
export function VectorMap() {
  const list = vectors.value ?? [];
  if (list.length < 3) return null;
  const found = similar.data.value;
  const shown = found?.names.every((name) => vectorByName.value.has(name)) ? found : null;
  return (
    <section class="panel stack" aria-label="Map of vectors">
      <div class="row between">
        <h2>Vectors by similarity</h2>
        <Button
          label={shown ? "Draw again" : "Draw the map of all vectors"}
          disabled={similar.busy.value}
          onClick={() => void similar.ask(list)}
        />
      </div>
      <p class="small muted">
        Vectors that lie near each other share a direction, or point in opposite ones. A click opens the card.
      </p>
      <ErrorNote error={similar.error.value} />
      <Warnings of={shown?.warnings} />
      {shown && <Places {...shown} />}
      {shown && shown.names.length < list.length && (
        <p class="small muted">
          The map has {shown.names.length} of {list.length} vectors.
        </p>
      )}
    </section>
  );
}

const LONGEST = 20;

function Places({ names, cosine }: Pick<Similarities, "names" | "cosine">) {
  const points = scaledMap(cosine.map((row) => row.map((value) => 1 - Math.abs(value ?? 0))));
  const x = linear(domainOf(points.map(([value]) => value), 0.05), [80, WIDTH - 80]); // biome-ignore format: one line
  const y = linear(domainOf(points.map(([, value]) => value), 0.05), [HEIGHT - 30, 30]); // biome-ignore format: one line
  const dots = points.map(([px, py]) => [x(px), y(py)] as const);
  const words = names.map((name) => (name.length > LONGEST ? `${name.slice(0, LONGEST - 1)}…` : name));
  const labels = placeLabels(dots, words, WIDTH, HEIGHT);
  return (
    <svg class="vector-map" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="group" aria-label={`Map of ${names.join(", ")}`}>
      {dots.map(([cx, cy], index) => {
        const name = names[index] ?? "";
        const label = labels[index] ?? { x: cx, y: cy };
        return (
          <a key={name} href="#/make" aria-label={`Open ${name}`} onClickCapture={() => (card.value = name)}>
            <line x1={cx} y1={cy} x2={label.x} y2={label.y - 4} />
            <circle cx={cx} cy={cy} r={5} />
            <text x={label.x} y={label.y} text-anchor="middle">
              {words[index]}
              <title>{name}</title>
            </text>
          </a>
        );
      })}
    </svg>
  );
}
