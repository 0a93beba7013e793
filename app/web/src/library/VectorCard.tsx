import type { Vector } from "../api/types";
import { atChance } from "../compare/WhyNothing";
import { polesOf } from "../core/vectors";
import { isShown } from "../maths/strength";
import { DialView } from "../ui/Dial";
import { selected, usersOf } from "./store";

/** A vector in a few words, with its dial. */
export function VectorCard({ vector }: { vector: Vector }) {
  const users = usersOf(vector);
  return (
    <button type="button" class="card" onClick={() => (selected.value = vector.name)}>
      <span class="row between">
        <strong class="name">{vector.name}</strong>
        <span class="small muted number">v{vector.version}</span>
      </span>
      <span class="description small muted" dir="auto">
        {vector.description || vector.method.replaceAll("_", " ")}
      </span>
      <DialView
        poles={polesOf(vector.name, vector)}
        shown={{ negative: isShown(vector, -1), positive: isShown(vector, 1) }}
      />
      <span class="row">
        <Badges vector={vector} />
      </span>
      {users.length > 0 && <span class="small muted">used by {users.join(", ")}</span>}
    </button>
  );
}

/** How well a vector reads its concept, and whether it was shown to steer. */
export function Badges({ vector }: { vector: Vector }) {
  return (
    <>
      <Badge verdict={readingVerdict(vector)} /> <Badge verdict={steeringVerdict(vector)} />
    </>
  );
}

export function Badge({ verdict }: { verdict: Verdict }) {
  return <span class={`badge ${verdict.kind}`}>{verdict.text}</span>;
}

export interface Verdict {
  text: string;
  kind: "good" | "unmeasured" | "bad";
}

/** Says in words how well a vector reads its concept. */
export function readingVerdict(vector: Vector): Verdict {
  const layers = vector.recommended?.layers ?? [];
  const quality = layers.map((layer) => vector.quality?.layers[String(layer)]).find(Boolean);
  if (!quality || quality.auroc == null) return { text: "reading not measured", kind: "unmeasured" };
  if (atChance(vector)) return { text: "not shown to be better than chance", kind: "bad" };
  return { text: quality.auroc >= 0.9 ? "reads well" : "reads weakly", kind: "good" };
}

/** Says in words whether the vector was shown to steer. */
export function steeringVerdict(vector: Vector): Verdict {
  const shown = isShown(vector);
  if (shown === false) {
    const onAverage = vector.quality?.warnings?.some((warning) => warning.startsWith("not shown to steer"));
    return { text: onAverage ? "not shown to steer" : "does not steer", kind: "bad" };
  }
  if (!vector.quality?.dose_response) return { text: "steering not measured", kind: "unmeasured" };
  const [up, down] = [isShown(vector, 1), isShown(vector, -1)];
  if (up === false) return { text: "steers one way, away from it", kind: "good" };
  return { text: down === false ? "steers one way, towards it" : "steers", kind: "good" };
}
