import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { apiKey } from "../api/client";
import { polesOf, vectors } from "../core/server";
import { domainOf, linear, meanOf, signed } from "../maths/scales";
import { ChoiceField, named, of, Segments } from "../ui/fields";
import { Button, ErrorNote, focusing, Note, ScoreLegend } from "../ui/parts";
import { Drift } from "./Drift";
import { ARMS, change, compareBody, draft } from "./draft";
import { aboutPane, PaneView } from "./PaneView";
import { answerReading, readAnswers, readBack, wasRead } from "./readback";
import { emptyPane, type Pane, type Shade } from "./run";
import * as play from "./store";
import { WhyNothing } from "./WhyNothing";

const TITLES: Readonly<Record<string, string>> = {
  [ARMS.normal]: "Plain",
  [ARMS.steered]: "Steered",
  [ARMS.prompted]: "Told in words",
};

const titleOf = ({ name }: { name: string }) => TITLES[name] ?? name;

/** The pane a narrow screen shows; a wide one shows all. */
const tab = signal<string>(ARMS.steered);

/** The answers next to each other, with the way of shading and the choice of the sample. */
export function Panes() {
  const reading = useReadBack();
  const { asked, panes: shown, running } = play.comparison;
  const body = asked.value ?? compareBody(draft.value, play.instruction.value);
  const panes = shown.value.length > 0 ? shown.value : body.arms.map((arm) => emptyPane(arm.name, 1)); // nothing moves when tokens arrive
  const base = panes.find((pane) => pane.name === ARMS.normal);
  const steered = panes.find((pane) => pane.name === ARMS.steered);
  const samples = panes[0]?.choices.map((_, index) => [index, String(index + 1)] as const) ?? [];
  const tabs = panes.map((pane) => [pane.name, titleOf(pane)] as const);
  const chosen = tabs.some(([name]) => name === tab.value) ? tab.value : ARMS.normal;
  const busy = running.value || reading === "running";
  const about = aboutPane(ARMS.steered, body);
  const back = focusing("#prompt", play.previousTurn);
  const ended = shown.value.some(({ choices }) => choices[0]?.finish) && !running.value && !draft.value.raw;
  return (
    <section class="stack" aria-label="Answers" tabIndex={-1} aria-busy={busy}>
      <ShadeBar />
      <div class="tabs">
        <Segments label="Pane" options={tabs} {...of(tab)} value={chosen} />
      </div>
      {play.stale.value && (
        <Note kind="plain">
          <span>These answers are of other settings{about && ` (${about})`}.</span>
          <Button label="Run again" disabled={play.draftProblem.value !== null} onClick={play.run} />
        </Note>
      )}
      {reading !== "unwanted" && <ErrorNote error={readBack.error.value} />}
      {reading === "running" && <p class="small muted">Reading the answers again, without steering</p>}
      {samples.length > 1 && (
        <div class="panel stack">
          <Segments label="Sample" options={samples} {...of(play.sampleIndex)} />
          {play.reader.value && <DotPlot panes={panes} name={play.reader.value} />}
        </div>
      )}
      <div class="panes" data-tab={chosen} style={{ "--panes": panes.length }}>
        {panes.map((pane) => (
          <PaneView key={pane.name} {...{ pane, base }} title={titleOf(pane)} about={aboutPane(pane.name, body)} />
        ))}
      </div>
      {steered && !running.value && <WhyNothing steered={steered} />}
      <Drift titles={TITLES} />
      <div class="row">
        {ended && <Button label="Next turn" title={NEXT} onClick={focusing("#prompt", play.nextTurn)} />}
        {draft.value.turns.length > 0 && <Button label="One turn back" kind="quiet" onClick={back} />}
      </div>
    </section>
  );
}

const NEXT = "Each thread goes on from its own answer";

/** Reads the answers of a run that has ended, where what they say is shown; with a new key, what is not read yet. */
function useReadBack(): "unwanted" | "running" | "done" {
  const { asked: body, panes: signal, running } = play.comparison;
  const [asked, name, panes] = [running.value ? null : body.value, play.reader.value, signal.value];
  const unread =
    name !== null && panes.some((pane) => pane.error === null && pane.metrics?.readout[name] === undefined);
  const wanted = play.shownShade.value === "reading" || unread || (panes[0]?.choices.length ?? 1) > 1;
  useEffect(() => {
    if (asked !== null && name !== null && wanted) void readAnswers(asked, signal.peek(), name);
  }, [asked, name, wanted, apiKey.value]);
  if (asked === null || name === null || !wanted) return "unwanted";
  return wasRead(asked, name) ? "done" : "running";
}

/** How the words are coloured, which vector reads them, and whether they are inspected one by one. */
function ShadeBar() {
  const { inspecting, shade } = play;
  const [name, shown] = [play.reader.value, play.shownShade.value];
  const options: (readonly [Shade, string])[] = [
    ...(name ? ([["reading", `Reading of ${name}`]] as const) : []),
    ["difference", "Differences"],
    ["surprise", "Surprise"],
    ["kl", "KL"],
  ];
  const all = named(vectors.value);
  const known = name === null || all.some(([one]) => one === name) ? all : [[name, name] as [string, string], ...all];
  const read = (next: string) => change({ reader: next });
  const poles = name && shown === "reading" ? polesOf(name) : null;
  return (
    <div class="row between shading">
      <Segments label="Shade the words by" options={options} {...of(shade)} value={shown} />
      {name && all.length > 1 && <ChoiceField label="Read with" options={known} value={name} onChange={read} />}
      {poles && <ScoreLegend below={poles.negative} middle="middle" above={poles.positive} />}
      <Button label="Inspect words" pressed={inspecting.value} onClick={() => (inspecting.value = !inspecting.value)} />
    </div>
  );
}

const WIDTH = 480;
const ROW = 26;
const LABEL = 96;

/** What each of several samples says as a dot, an arm a row. */
function DotPlot({ panes, name }: { panes: readonly Pane[]; name: string }) {
  const asked = play.comparison.asked.value;
  const rows = panes.map((pane) => {
    const values = pane.choices.map((_, choice) => answerReading(asked, name, pane.name, choice)?.mean ?? null);
    return { title: titleOf(pane), values, mean: meanOf(values) };
  });
  const all = rows.flatMap((row) => row.values).filter((value): value is number => value !== null);
  if (all.length === 0) return null;
  const [low, high] = domainOf(all, 0.1);
  const x = linear([low, high], [LABEL + 8, WIDTH - 12]);
  const height = rows.length * ROW + 20;
  const summary = rows.map((row) => `${row.title}: ${name} ${signed(row.mean)}`).join(", ");
  const upright = (kind: string, at: number, y1: number, y2: number) => (
    <line x1={x(at)} x2={x(at)} y1={y1} y2={y2} class={kind} />
  );
  return (
    <figure>
      <figcaption class="small muted">What each sample says about {name}; the bar is the mean</figcaption>
      <svg class="dot-plot" viewBox={`0 0 ${WIDTH} ${height}`} role="img" aria-label={summary}>
        {low < 0 && high > 0 && upright("zero", 0, 0, height - 18)}
        {rows.map(({ title, values, mean }, index) => {
          const y = index * ROW + ROW / 2;
          return (
            <g key={title}>
              <text x={LABEL} y={y + 4} text-anchor="end">
                {title}
              </text>
              {values.map((value, sample) => {
                if (value === null) return null;
                const radius = sample === play.sampleIndex.value ? 6 : 4;
                return (
                  <circle key={sample} cx={x(value)} cy={y} r={radius} class={value < 0 ? "minus" : "plus"}>
                    <title>{`sample ${sample + 1}: ${signed(value)}`}</title>
                  </circle>
                );
              })}
              {mean !== null && upright("mean", mean, y - 9, y + 9)}
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
