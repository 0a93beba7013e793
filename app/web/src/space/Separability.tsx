import { plain } from "../maths/scales";
import { Chart, type Series } from "../ui/Chart";
import { layerName, maps, playhead } from "./store";

/** How well the labels stand apart at each layer, with the playhead on the curve. */
export function Separability() {
  const list = maps.value;
  const auroc = list.map((map) => map.separability?.auroc ?? null);
  if (auroc.every((value) => value === null)) return <NoLabels />;
  const x = list.map((map) => map.layer ?? -1);
  const bounds = list.map(
    (map) => (map.separability as { auroc_interval?: [number, number] | null } | null)?.auroc_interval,
  );
  const interval: Series[] = bounds.some(Boolean)
    ? [
        { label: "low", values: bounds.map((one) => one?.[0] ?? null), look: "low" },
        { label: "high", values: bounds.map((one) => one?.[1] ?? null), look: "high" },
      ]
    : [];
  return (
    <section class="panel stack" aria-label="Separability">
      <Chart
        title="How well the labels can be separated at each layer (AUROC of a linear reading; −1 is the input)"
        x={x}
        xLabel="layer"
        yRange={[0.3, 1.02]}
        mark={x[Math.round(playhead.value)] ?? null}
        series={[...interval, { label: "AUROC", values: auroc, look: "strong" }]}
        describe={(index) => `${layerName(index)}: ${plain(auroc[index])}`}
        onPick={(index) => (playhead.value = index)}
      />
      <p>{sentence(auroc, Math.round(playhead.value))}</p>
    </section>
  );
}

function NoLabels() {
  if (maps.value.length === 0) return null;
  return (
    <section class="panel" aria-label="Separability">
      <p class="muted">With a label for each text, a curve here shows at which layers the labels can be separated.</p>
    </section>
  );
}

/** Says what a person is looking at. */
function sentence(auroc: readonly (number | null)[], at: number): string {
  const input = auroc[0] ?? 0.5;
  const here = auroc[at] ?? 0.5;
  const best = auroc.reduce<number>((top, value, index) => ((value ?? 0) > (auroc[top] ?? 0) ? index : top), 0);
  if (at === 0)
    return input >= 0.9
      ? `Here only the words themselves count, and they already tell the labels apart (${plain(input)}).`
      : `Here only the words themselves count; they tell the labels apart with ${plain(input)}, where 0.5 is chance.`;
  const change = here - input;
  const trend =
    change > 0.05
      ? "The model tells the labels apart better than the words alone do"
      : change < -0.05
        ? "The model has moved away from what tells the labels apart"
        : "The labels are as far apart as in the words alone";
  return `${trend}: ${plain(here)} here, ${plain(input)} at the input. The best is ${layerName(best)} with ${plain(auroc[best])}.`;
}
