import { useState } from "preact/hooks";
import { api, dataOf } from "../api/client";
import type { CompareAnswer, Vector } from "../api/types";
import { doseBound, typicalNorms } from "../frame/server";
import { signed } from "../maths/scales";
import { zonesOf } from "../maths/strength";
import { Button } from "../ui/Button";
import { ErrorNote, Note } from "../ui/Note";

const PROMPTS = ["How was your day?", "Tell me about the sea.", "What should I cook tonight?"] as const;

interface Trial {
  prompt: string;
  answers: { strength: number; text: string; problem: string | null }[];
}

/** Three prompts at three strengths next to the unsteered answers, to read. */
export function TryIt({ vector }: { vector: Vector }) {
  const [trials, setTrials] = useState<Trial[]>([]);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const zones = zonesOf(vector, 1, typicalNorms.value, doseBound.value);
  const strengths = [-1, 0, 0.5, 1].map((share) => Number((share * zones.high).toFixed(2)));
  const start = async () => {
    setBusy(true);
    setError(null);
    setTrials([]);
    try {
      for (const prompt of PROMPTS) {
        const trial = await tryOne(vector.name, prompt, strengths);
        setTrials((before) => [...before, trial]);
      }
    } catch (failure) {
      setError(failure);
    } finally {
      setBusy(false);
    }
  };
  return (
    <section class="panel stack" aria-label="Try it" aria-busy={busy}>
      <div class="row between">
        <h2>Try it</h2>
        <Button disabled={busy} onClick={() => void start()}>
          {busy
            ? "Writing"
            : `Answer three prompts at ${strengths.map((one) => (one === 0 ? "0" : signed(one))).join(", ")}`}
        </Button>
      </div>
      <ErrorNote error={error} />
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

async function tryOne(vector: string, prompt: string, strengths: readonly number[]): Promise<Trial> {
  const arms = strengths.map((strength) => ({
    name: String(strength),
    steering: strength === 0 ? [] : [{ vector, strength }],
  }));
  const body = { messages: [{ role: "user" as const, content: prompt }], arms, baseline: "0", seed: 7, max_tokens: 40 };
  const answer = await dataOf<CompareAnswer>(api.POST("/v1/compare", { body }));
  const answers = answer.arms.map(({ name, choices, error }) => ({
    strength: Number(name),
    text: choices[0]?.text ?? "",
    problem: error?.message ?? null,
  }));
  return { prompt, answers };
}
