import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { type AppliedIntervention, api, apiKey, dataOf, type Explanation, type Vector } from "../api/client";
import { Query } from "../core/query";
import { plainName, polesOf, vectorNamed, vectors } from "../core/server";
import { domainOf, linear, meanOf, signed } from "../maths/scales";
import { atChance, isShown } from "../maths/strength";
import { ChoiceField, named, of, Segments } from "../ui/fields";
import { Ask, Button, ErrorNote, focusing, More, Note, ScoreLegend, scored, Table, Warnings } from "../ui/parts";
import { hints, threads } from "../words.json";
import type { Control } from "./controls";
import { ARMS, type CompareBody, change, changeControl, compareBody, draft } from "./draft";
import { aboutPane, PaneView } from "./PaneView";
import { answerReading, readAnswers, readBack, shiftWords, wasRead } from "./readback";
import { emptyPane, type Pane, type Shade } from "./run";
import * as play from "./store";

const titleOf = ({ name }: { name: string }) => threads[name as keyof typeof threads] ?? name;

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
      <Drift titles={threads} />
      <div class="row">
        {ended && <Button label="Next turn" title={hints.nextTurn} onClick={focusing("#prompt", play.nextTurn)} />}
        {draft.value.turns.length > 0 && (
          <Button label="One turn back" kind="quiet" title={hints.previousTurn} onClick={back} />
        )}
      </div>
    </section>
  );
}

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

/** The scores of every answer of each thread against a vector, as z by turn; and what they are of. */
const drift = new Query(async (signal, asked: CompareBody, panes: readonly Pane[], vector: string) => {
  const texts = panes.map(({ name, choices }) => {
    const answer = (choices[play.sampleIndex.peek()] ?? choices[0])?.text ?? "";
    return [...(asked.threads?.[name] ?? []), { role: "assistant" as const, content: answer }];
  });
  const body = { texts, vectors: [vector], turns: true, threshold: 0 };
  const found = await dataOf<Explanation>(api.POST("/v1/explain", { body: body as never, signal }));
  const turns = found.texts.map(({ concepts }) => concepts[0]?.turns?.map(({ z }) => z) ?? []);
  return { asked, vector, turns, warnings: found.warnings };
});

/** How far each answer of a conversation leans toward a concept, thread by thread: its drift by turn. */
export function Drift({ titles }: { titles: Readonly<Record<string, string>> }) {
  const { asked: signal, panes, running } = play.comparison;
  const [asked, vector] = [signal.value, play.reader.value];
  if (!asked?.threads || vector === null || running.value) return null;
  const found = drift.data.value?.asked === asked && drift.data.value.vector === vector ? drift.data.value : null;
  const rows = panes.value.map(({ name }, index) => [
    titles[name] ?? name,
    ...(found?.turns[index] ?? []).map((z) => scored(z, FULL, 1)),
  ]);
  const head = ["", ...(found?.turns[0] ?? []).map((_, turn) => `turn ${turn + 1}`)];
  const ask = () => drift.ask(asked, panes.value, vector);
  return (
    <More summary="Drift by turn">
      <p class="small muted">{hints.drift}</p>
      <div class="row">
        <Ask query={drift} label={`Read ${vector} in every answer`} waiting="Reading" onAsk={ask} />
      </div>
      <ErrorNote error={drift.error.value} />
      <Warnings of={found?.warnings} />
      {found && <Table label={`Drift of ${vector}`} look="matrix" head={head} rows={rows} />}
    </More>
  );
}

/** Deviations from neutral answers that have full colour. */
const FULL = 8;

/** Appears when steering did not show: what may be the reason, each with a button that changes it. */
export function WhyNothing({ steered }: { steered: Pane }) {
  const name = play.reader.value;
  if (!nothingMoved(steered, name)) return null;
  const { controls, overall } = draft.value;
  const reasons = reasonsFor(steered, controls, overall);
  const shift = name === null ? undefined : steered.against?.readout_shift[name];
  const title = isUnchanged(steered)
    ? "Steering changed nothing"
    : `No sure effect on ${name}${shift ? ` (Δ ${shiftWords(shift)})` : ""}`;
  return (
    <section class="note notice why" aria-label="Why steering does not show">
      <h3>{title}</h3>
      {reasons.length === 0 && <p>Nothing is unusual. More samples, or another prompt, may tell.</p>}
      <ul class="stack">
        {reasons.map((reason) => (
          <li key={reason.text} class="row">
            <span>{reason.text}</span>
            {reason.remedy && <Button label={REMEDIES[reason.remedy].label} onClick={() => apply(reason)} />}
          </li>
        ))}
      </ul>
    </section>
  );
}

/** What a reason offers to change, and the words of its button. */
const REMEDIES = {
  "reset-overall": { label: "Set it to 1", part: () => change({ overall: 1 }) },
  stronger: { label: "Double the strength", part: ({ strength }: Control) => ({ strength: strength * 2 }) },
  "recommended-layers": { label: "Use the recommended layers", part: () => ({ layers: "recommended" as const }) },
  "no-condition": { label: "Remove the condition", part: () => ({ when: null }) },
  "switch-on": { label: "Switch it on", part: () => ({ on: true }) },
};

function apply({ remedy, control }: Reason): void {
  const found = draft.value.controls.find((one) => one.id === control);
  if (remedy === "reset-overall") REMEDIES[remedy].part();
  else if (found && remedy) changeControl(found.id, REMEDIES[remedy].part(found));
  play.run();
}

type Reason = { text: string; remedy: keyof typeof REMEDIES | null; control: number | null };
/** A relative dose below which steering seldom shows. */
const SMALL_DOSE = 0.03;

const isUnchanged = ({ against }: Pane): boolean =>
  against?.first_divergence.every((position) => position === null) ?? false;

/** Whether the steered text is the plain text, or reads no differently. */
export function nothingMoved(steered: Pane, reader: string | null): boolean {
  const against = steered.against;
  if (!against) return false;
  if (isUnchanged(steered)) return true;
  const [low, high] = (reader !== null && against.readout_shift[reader]?.interval) || [];
  return low != null && high != null && low <= 0 && high >= 0;
}

/** Says why steering may not have shown, each reason with what to change. */
export function reasonsFor(steered: Pane, controls: readonly Control[], overall: number, find = vectorNamed): Reason[] {
  const zero: Reason[] = overall === 0 ? [{ text: "The overall strength is 0.", remedy: "reset-overall", control: null }] : []; // biome-ignore format: one line
  const own = controls.flatMap((control) => {
    const applied = steered.steering?.applied.find((one) => plainName(one.vector) === plainName(control.vector));
    return reasonsOf(control, applied, find(control.vector));
  });
  return [...zero, ...own];
}

function reasonsOf(control: Control, applied: AppliedIntervention | undefined, vector: Vector | undefined): Reason[] {
  const { vector: name, on, operation, layers, strength, when, id } = control;
  const reason = (text: string, remedy: Reason["remedy"] = null) => ({ text, remedy, control: id });
  if (!on) return [reason(`${name} is switched off.`, "switch-on")];
  const reasons: Reason[] = [];
  if (applied && !applied.fired && when)
    reasons.push(reason(`The condition of ${name} was never true.`, "no-condition"));
  const dose = applied ? Math.max(0, ...Object.values(applied.relative_dose).map((value) => value ?? 0)) : SMALL_DOSE;
  const small = `The dose of ${name} is small: it changes the residual stream by ${(100 * dose).toFixed(1)} %.`;
  if (dose < SMALL_DOSE && applied?.fired && operation === "add") reasons.push(reason(small, "stronger"));
  if (layers !== "recommended") reasons.push(reason(`${name} acts at layers of your choice.`, "recommended-layers"));
  if (vector && isShown(vector, strength) === false)
    reasons.push(reason(`The card of ${name} does not show that it steers this way.`));
  if (vector && atChance(vector)) reasons.push(reason(`${name} is not shown to read its concept better than chance.`));
  return reasons;
}
