import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { apiKey } from "../api/retry";
import { polesOf } from "../core/concepts";
import { vectors } from "../core/vectors";
import { domainOf, linear, meanOf, signed } from "../maths/scales";
import { Button } from "../ui/Button";
import { ScoreLegend } from "../ui/Coloured";
import { ChoiceField, named, of, Segments } from "../ui/fields";
import { focusNext } from "../ui/focus";
import { ErrorNote, Note } from "../ui/Note";
import { ARMS, change, compareBody, draft } from "./draft";
import { aboutPane, PaneView } from "./PaneView";
import { answerReading, readAnswers, readBack, wasRead } from "./readback";
import { emptyPane, type Pane, type Shade } from "./run";
import {
  comparison,
  draftProblem,
  inspecting,
  instruction,
  nextTurn,
  previousTurn,
  reader,
  run,
  sampleIndex,
  shade,
  shownShade,
  stale,
} from "./store";
import { WhyNothing } from "./WhyNothing";

const TITLES: Readonly<Record<string, string>> = {
  [ARMS.normal]: "Plain",
  [ARMS.steered]: "Steered",
  [ARMS.prompted]: "Told in words",
};

/** The pane a narrow screen shows; a wide one shows all. */
const tab = signal<string>(ARMS.steered);

/** The answers next to each other, with the way of shading and the choice of the sample. */
export function Panes() {
  const reading = useReadBack();
  const body = comparison.asked.value ?? compareBody(draft.value, instruction.value);
  const shown = comparison.panes.value;
  const panes = shown.length > 0 ? shown : body.arms.map((arm) => emptyPane(arm.name, 1)); // nothing moves when tokens arrive
  const base = panes.find((pane) => pane.name === ARMS.normal);
  const steered = panes.find((pane) => pane.name === ARMS.steered);
  const tabs = panes.map((pane) => [pane.name, TITLES[pane.name] ?? pane.name] as const);
  const chosen = tabs.some(([name]) => name === tab.value) ? tab.value : ARMS.normal;
  return (
    <section
      class="stack"
      aria-label="Answers"
      tabIndex={-1}
      aria-busy={comparison.running.value || reading === "running"}
    >
      <ShadeBar />
      <div class="tabs">
        <Segments label="Pane" options={tabs} {...of(tab)} value={chosen} />
      </div>
      {stale.value && <StaleNote />}
      {reading !== "unwanted" && <ErrorNote error={readBack.error.value} />}
      {reading === "running" && <p class="small muted">Reading the answers again, without steering</p>}
      {(panes[0]?.choices.length ?? 1) > 1 && <Samples panes={panes} titles={TITLES} />}
      <div class="panes" data-tab={chosen} style={{ "--panes": panes.length }}>
        {panes.map(({ name }, index) => (
          <PaneView
            key={name}
            pane={panes[index]!}
            base={base}
            title={TITLES[name] ?? name}
            about={aboutPane(name, body)}
          />
        ))}
      </div>
      {steered && !comparison.running.value && <WhyNothing steered={steered} />}
      <TurnButtons />
    </section>
  );
}

/** Goes on with the conversation in every thread, or one turn back. */
function TurnButtons() {
  const ended = comparison.panes.value.some(({ choices }) => choices[0]?.finish) && !comparison.running.value;
  const next = () => {
    nextTurn();
    focusNext("#prompt");
  };
  const back = () => {
    previousTurn();
    focusNext("#prompt");
  };
  return (
    <div class="row">
      {ended && !draft.value.raw && (
        <Button label="Next turn" title="Each thread goes on from its own answer" onClick={next} />
      )}
      {draft.value.turns.length > 0 && <Button label="One turn back" kind="quiet" onClick={back} />}
    </div>
  );
}

/** Says that the answers are of other settings than those that are shown above them. */
function StaleNote() {
  const of = comparison.asked.value;
  const steered = of ? aboutPane(ARMS.steered, of) : "";
  return (
    <Note kind="plain">
      <span>These answers are of other settings{steered && ` (${steered})`}.</span>
      <Button label="Run again" disabled={draftProblem.value !== null} onClick={run} />
    </Note>
  );
}

/** Reads the answers of a run that has ended, where what they say is shown; with a new key, what is not read yet. */
function useReadBack(): "unwanted" | "running" | "done" {
  const asked = comparison.running.value ? null : comparison.asked.value;
  const name = reader.value;
  const panes = comparison.panes.value;
  const unread =
    name !== null && panes.some((pane) => pane.error === null && pane.metrics?.readout[name] === undefined);
  const wanted = shownShade.value === "reading" || unread || (panes[0]?.choices.length ?? 1) > 1;
  useEffect(() => {
    if (asked !== null && name !== null && wanted) void readAnswers(asked, comparison.panes.peek(), name);
  }, [asked, name, wanted, apiKey.value]);
  if (asked === null || name === null || !wanted) return "unwanted";
  return wasRead(asked, name) ? "done" : "running";
}

/** How the words are coloured, which vector reads them, and whether they are inspected one by one. */
function ShadeBar() {
  const name = reader.value;
  const options: (readonly [Shade, string])[] = [
    ...(name ? ([["reading", `Reading of ${name}`]] as const) : []),
    ["difference", "Differences"],
    ["surprise", "Surprise"],
    ["kl", "KL"],
  ];
  const known = named(vectors.value);
  const poles = name ? polesOf(name) : null;
  return (
    <div class="row between shading">
      <Segments label="Shade the words by" options={options} {...of(shade)} value={shownShade.value} />
      {name && known.length > 1 && (
        <ChoiceField
          label="Read with"
          options={known.some(([one]) => one === name) ? known : [[name, name], ...known]}
          value={name}
          onChange={(next) => change({ reader: next })}
        />
      )}
      {shownShade.value === "reading" && poles && (
        <ScoreLegend below={poles.negative} middle="middle" above={poles.positive} />
      )}
      <Button label="Inspect words" pressed={inspecting.value} onClick={() => (inspecting.value = !inspecting.value)} />
    </div>
  );
}

interface SamplesProps {
  panes: readonly Pane[];
  titles: Readonly<Record<string, string>>;
}

const WIDTH = 480;
const ROW = 26;
const LABEL = 96;

/** Several samples: what each of them says as a dot, an arm a row, and the choice of the one that is shown. */
export function Samples({ panes, titles }: SamplesProps) {
  const n = panes[0]?.choices.length ?? 0;
  return (
    <div class="panel stack">
      <Segments
        label="Sample"
        options={Array.from({ length: n }, (_, index) => [index, String(index + 1)] as const)}
        {...of(sampleIndex)}
      />
      {reader.value && <DotPlot panes={panes} titles={titles} name={reader.value} />}
    </div>
  );
}

function DotPlot({ name, ...shown }: SamplesProps & { name: string }) {
  const rows = rowsOf(shown, name);
  const all = rows.flatMap((row) => row.values).filter((value): value is number => value !== null);
  if (all.length === 0) return null;
  const [low, high] = domainOf(all, 0.1);
  const x = linear([low, high], [LABEL + 8, WIDTH - 12]);
  const height = rows.length * ROW + 20;
  return (
    <figure>
      <figcaption class="small muted">What each sample says about {name}; the bar is the mean</figcaption>
      <svg class="dot-plot" viewBox={`0 0 ${WIDTH} ${height}`} role="img" aria-label={summary(rows, name)}>
        {low < 0 && high > 0 && <line x1={x(0)} x2={x(0)} y1={0} y2={height - 18} class="zero" />}
        {rows.map((row, index) => {
          const y = index * ROW + ROW / 2;
          const mean = meanOf(row.values);
          return (
            <g key={row.title}>
              <text x={LABEL} y={y + 4} text-anchor="end">
                {row.title}
              </text>
              {row.values.map((value, sample) =>
                value === null ? null : (
                  <circle
                    key={sample}
                    cx={x(value)}
                    cy={y}
                    r={sample === sampleIndex.value ? 6 : 4}
                    class={value < 0 ? "minus" : "plus"}
                  >
                    <title>{`sample ${sample + 1}: ${signed(value)}`}</title>
                  </circle>
                ),
              )}
              {mean !== null && <line x1={x(mean)} x2={x(mean)} y1={y - 9} y2={y + 9} class="mean" />}
            </g>
          );
        })}
        <text x={x(low)} y={height - 4}>
          {signed(low, 1)}
        </text>
        <text x={x(high)} y={height - 4} text-anchor="end">
          {signed(high, 1)}
        </text>
      </svg>
    </figure>
  );
}

interface Row {
  title: string;
  values: readonly (number | null)[];
}

function rowsOf({ panes, titles }: SamplesProps, name: string): Row[] {
  const asked = comparison.asked.value;
  return panes.map((pane) => ({
    title: titles[pane.name] ?? pane.name,
    values: pane.choices.map((_, choice) => answerReading(asked, name, pane.name, choice)?.mean ?? null),
  }));
}

function summary(rows: readonly Row[], name: string): string {
  return rows.map((row) => `${row.title}: ${name} ${signed(meanOf(row.values))}`).join(", ");
}
