import { vectorByName, vectors } from "../frame/vectors";
import type { Similarities } from "../library/store";
import { scaledMap } from "../maths/mds";
import { domainOf, linear } from "../maths/scales";
import { Button } from "../ui/Button";
import { ErrorNote, Warnings } from "../ui/Note";
import { busy, drawVectors, error, found } from "./vectorMap";

const WIDTH = 640;
const HEIGHT = 300;

/** All vectors of the library on one map: near means that their directions are alike or opposite. */
export function VectorMap() {
  const list = vectors.value ?? [];
  if (list.length < 3) return null;
  const shown = found.value?.names.every((name) => vectorByName.value.has(name)) ? found.value : null;
  return (
    <section class="panel stack" aria-label="Map of vectors">
      <div class="row between">
        <h2>Vectors by similarity</h2>
        <Button disabled={busy.value} onClick={() => void drawVectors(list)}>
          {shown ? "Draw again" : "Draw the map of all vectors"}
        </Button>
      </div>
      <p class="small muted">Vectors that lie near each other share a direction, or point in opposite ones.</p>
      <ErrorNote error={error.value} />
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

function Places({ names, cosine }: Pick<Similarities, "names" | "cosine">) {
  const points = scaledMap(cosine.map((row) => row.map((value) => 1 - Math.abs(value ?? 0))));
  const x = linear(domainOf(points.map(([value]) => value), 0.15), [60, WIDTH - 60]); // biome-ignore format: one line
  const y = linear(domainOf(points.map(([, value]) => value), 0.15), [HEIGHT - 24, 24]); // biome-ignore format: one line
  return (
    <svg class="vector-map" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label={`Map of ${names.join(", ")}`}>
      {points.map(([px, py], index) => (
        <g key={names[index]}>
          <circle cx={x(px)} cy={y(py)} r={5} />
          <text x={x(px)} y={y(py) - 10} text-anchor="middle">
            {names[index]}
          </text>
        </g>
      ))}
    </svg>
  );
}
