import { useState } from "preact/hooks";
import { api, dataOf } from "../api/client";
import type { CompareAnswer, Vector } from "../api/types";
import { addVector } from "../compare/store";
import { open } from "../core/places";
import { Query } from "../core/query";
import { doseBound, hasRoute, mayDo, typicalNorms } from "../core/server";
import { card, library, vectorNamed } from "../core/vectors";
import { signed } from "../maths/scales";
import { zonesOf } from "../maths/strength";
import { duration } from "../maths/text";
import { Button } from "../ui/Button";
import { ErrorNote, Note } from "../ui/Note";
import { QualityCard } from "./QualityCard";
import { TransferLoss } from "./TransferLoss";
import { measure, measureEstimate, measureSize, running } from "./work";

/** The vector that was found: its card, a trial at three strengths, and the measurement of its strengths. */
export function Result({ name }: { name: string }) {
  const vector = vectorNamed(name);
  const another = <Button label="Make another" kind="quiet" onClick={() => (card.value = null)} />;
  if (!vector)
    return (
      <section class="panel stack" aria-label="Quality">
        <h2>{name}</h2>
        <p class="muted">The library could not be read after this vector was stored, or the vector was deleted.</p>
        <div class="row">
          <Button label="Read the library again" kind="primary" onClick={() => void library.ask()} />
          {another}
        </div>
      </section>
    );
  const use = () => {
    addVector(vector);
    open("compare");
  };
  const measurable = !vector.quality?.dose_response && hasRoute("POST", "/v1/evaluations") && mayDo("write");
  return (
    <>
      <section class="panel stack" aria-label="Quality">
        <h2>{vector.id}</h2>
        <QualityCard vector={vector} />
        <TransferLoss vector={vector} />
        <div class="row">
          <Button label="Steer with it" kind="primary" onClick={use} />
          {measurable && (
            <Button label="Measure its strengths" disabled={running.value} onClick={() => measure(name)} />
          )}
          {another}
        </div>
        {measurable && <MeasureNote />}
      </section>
      <TryIt key={vector.id} vector={vector} />
    </>
  );
}

/** Says what a measurement costs, before it is asked for. */
function MeasureNote() {
  const seconds = measureEstimate.value;
  const time = seconds === null ? "How long it takes is shown once it runs" : `It takes ${duration(seconds)}`;
  return (
    <p class="small muted">
      Measuring writes {measureSize().answers.toLocaleString("en")} answers at nine strengths, with random directions
      beside them. {time}; other requests go first, and it can be stopped at the top of the page.
    </p>
  );
}

const PROMPTS = ["How was your day?", "Tell me about the sea.", "What should I cook tonight?"] as const;

interface Trial {
  prompt: string;
  answers: { strength: number; text: string; problem: string | null }[];
}

/** Three prompts at three strengths next to the unsteered answers, to read. */
export function TryIt({ vector }: { vector: Vector }) {
  const zones = zonesOf(vector, 1, typicalNorms.value, doseBound.value);
  const strengths = [-1, 0, 0.5, 1].map((share) => Number((share * zones.high).toFixed(2)));
  const [trials, setTrials] = useState<Trial[]>([]);
  const [trying] = useState(
    () =>
      new Query(async (signal) => {
        setTrials([]);
        for (const prompt of PROMPTS) {
          const trial = await tryOne(vector.name, prompt, strengths, signal);
          setTrials((before) => [...before, trial]);
        }
        return true;
      }),
  );
  const busy = trying.busy.value;
  const at = strengths.map((one) => (one === 0 ? "0" : signed(one))).join(", ");
  return (
    <section class="panel stack" aria-label="Try it" aria-busy={busy}>
      <div class="row between">
        <h2>Try it</h2>
        <Button
          label={busy ? "Writing" : `Answer three prompts at ${at}`}
          disabled={busy}
          onClick={() => void trying.ask()}
        />
      </div>
      <ErrorNote error={trying.error.value} />
      {trials.map((trial) => (
        <div key={trial.prompt} class="stack trial">
          <h3>{trial.prompt}</h3>
          <div class="multiples">
            {trial.answers.map((answer) => (
              <article key={answer.strength} class="multiple" aria-label={`Strength ${answer.strength}`}>
                <h4 class="number small">{answer.strength === 0 ? "unsteered" : signed(answer.strength)}</h4>
                <p dir="auto">{answer.text}</p>
                {answer.problem && <Note kind="error">{answer.problem}</Note>}
              </article>
            ))}
          </div>
        </div>
      ))}
    </section>
  );
}

async function tryOne(vector: string, prompt: string, strengths: readonly number[], signal: AbortSignal) {
  const arms = strengths.map((strength) => ({
    name: String(strength),
    steering: strength === 0 ? [] : [{ vector, strength }],
  }));
  const body = { messages: [{ role: "user" as const, content: prompt }], arms, baseline: "0", seed: 7, max_tokens: 40 };
  const answer = await dataOf<CompareAnswer>(api.POST("/v1/compare", { body, signal }));
  const answers = answer.arms.map(({ name, choices, error }) => ({
    strength: Number(name),
    text: choices[0]?.text ?? "",
    problem: error?.message ?? null,
  }));
  return { prompt, answers } satisfies Trial;
}
