import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { apiKey } from "../api/key";
import { ErrorNote } from "../ui/Note";
import { Segments } from "../ui/Segments";
import { DiffView } from "./DiffView";
import { ARMS, compareBody, draft } from "./draft";
import { PaneView } from "./PaneView";
import { emptyPane, type Pane, type Shade } from "./panes";
import { readAnswers, readBackError, wasRead } from "./readback";
import { Samples } from "./Samples";
import { comparison, instruction, reader, sampleIndex, shade } from "./store";
import { WhyNothing } from "./WhyNothing";

const TITLES: Readonly<Record<string, string>> = {
  [ARMS.normal]: "Normal",
  [ARMS.steered]: "Steered",
  [ARMS.prompted]: "Prompt only",
};

/** The pane a narrow screen shows; a wide one shows all. */
const tab = signal<string>("difference");

/** The answers next to each other, with the way of shading and the choice of the sample. */
export function Panes() {
  const reading = useReadBack();
  const panes = shownPanes();
  const base = panes.find((pane) => pane.name === ARMS.normal);
  const steered = panes.find((pane) => pane.name === ARMS.steered);
  const samples = panes[0]?.choices.length ?? 1;
  const tabs = [
    ...(steered ? ([["difference", "Difference"]] as const) : []),
    ...panes.map((pane) => [pane.name, TITLES[pane.name] ?? pane.name] as const),
  ];
  const shown = tabs.some(([name]) => name === tab.value) ? tab.value : ARMS.normal;
  return (
    <section class="stack" aria-label="Answers" aria-busy={comparison.running.value || reading === "running"}>
      <ShadeBar />
      <div class="tabs">
        <Segments
          label="Pane"
          value={shown}
          options={tabs}
          onChange={(name) => {
            tab.value = name;
          }}
        />
      </div>
      {reading !== "unwanted" && <ErrorNote error={readBackError.value} />}
      {reading === "running" && <p class="small muted">Reading the answers again, without steering</p>}
      {samples > 1 && <Samples panes={panes} titles={TITLES} />}
      <div class="panes" data-tab={shown} style={{ "--panes": panes.length }}>
        {base && steered && <DiffView base={base} steered={steered} choice={sampleIndex.value} />}
        {panes.map((pane) => (
          <PaneView key={pane.name} pane={pane} base={base} title={TITLES[pane.name] ?? pane.name} />
        ))}
      </div>
      {steered && !comparison.running.value && <WhyNothing steered={steered} />}
    </section>
  );
}

/** Reads the answers of a run that has ended, where what they say is shown by token or by sample; with a new key, what is not read yet. */
function useReadBack(): "unwanted" | "running" | "done" {
  const asked = comparison.running.value ? null : comparison.asked.value;
  const name = reader.value;
  const wanted = shade.value === "reading" || (comparison.panes.value[0]?.choices.length ?? 1) > 1;
  useEffect(() => {
    if (asked !== null && name !== null && wanted) void readAnswers(asked, comparison.panes.peek(), name);
  }, [asked, name, wanted, apiKey.value]);
  if (asked === null || name === null || !wanted) return "unwanted";
  return wasRead(asked, name) ? "done" : "running";
}

/** The panes of the last run, or empty ones of the draft, so that nothing moves when tokens arrive. */
function shownPanes(): readonly Pane[] {
  if (comparison.panes.value.length > 0) return comparison.panes.value;
  return compareBody(draft.value, instruction.value).arms.map((arm) => emptyPane(arm.name, 1));
}

function ShadeBar() {
  const name = reader.value;
  const options: (readonly [Shade, string])[] = [
    ["difference", "Differences"],
    ...(name ? ([["reading", `Reading of ${name}`]] as const) : []),
    ["surprise", "Surprise"],
    ["kl", "KL"],
  ];
  return (
    <div class="row between">
      <Segments
        label="Shade the words by"
        value={shade.value}
        options={options}
        onChange={(next) => {
          shade.value = next;
        }}
      />
      {shade.value === "reading" && <ScoreLegend />}
    </div>
  );
}

function ScoreLegend() {
  return (
    <span class="row small legend">
      <span class="below" style={{ "--m": 1 }}>
        toward −
      </span>
      <span>middle</span>
      <span class="above" style={{ "--m": 1 }}>
        toward +
      </span>
    </span>
  );
}
