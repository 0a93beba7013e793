import type { Vector } from "../api/types";
import { plain } from "../maths/scales";
import { Sparkline } from "../ui/Sparkline";
import { bestAuroc, selected, usersOf } from "./store";
import { readingVerdict, steeringVerdict, type Verdict } from "./verdict";

/** A vector in a few words, with the curve of its AUROC over the layers. */
export function VectorCard({ vector }: { vector: Vector }) {
  const users = usersOf(vector);
  const auroc = vector.layers.map((layer) => vector.quality?.layers[String(layer)]?.auroc ?? null);
  const best = vector.recommended?.layers?.[0];
  return (
    <button type="button" class="card" onClick={() => (selected.value = vector.name)}>
      <span class="row between">
        <strong class="name">{vector.name}</strong>
        <span class="small muted number">v{vector.version}</span>
      </span>
      <span class="description small muted" dir="auto">
        {vector.description || vector.method.replaceAll("_", " ")}
      </span>
      {auroc.some((value) => value !== null) ? (
        <Sparkline
          label={`AUROC by layer; ${plain(bestAuroc(vector))} at layer ${best ?? "?"}`}
          values={auroc}
          range={[0.5, 1]}
          mark={best === undefined ? null : vector.layers.indexOf(best)}
        />
      ) : (
        <span class="sparkline small muted">No curve: it was not made from examples here.</span>
      )}
      <span class="row">
        <Badge verdict={readingVerdict(vector)} />
        <Badge verdict={steeringVerdict(vector)} />
      </span>
      {users.length > 0 && <span class="small muted">used by {users.join(", ")}</span>}
    </button>
  );
}

export function Badge({ verdict }: { verdict: Verdict }) {
  return <span class={`badge ${verdict.kind}`}>{verdict.text}</span>;
}
