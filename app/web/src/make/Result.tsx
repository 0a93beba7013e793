import { useEffect, useState } from "preact/hooks";
import { api, type CompareAnswer, dataOf, type Vector } from "../api/client";
import { DISTILLED, isDistilled } from "../compare/controls";
import { addVector } from "../compare/store";
import { open } from "../core/places";
import { Query } from "../core/query";
import { card, doseBound, library, mayDo, poleAt, typicalNorms, vectorNamed } from "../core/server";
import { QualityCard } from "../library/VectorCard";
import { signed } from "../maths/scales";
import { strengthAt, zonesOf } from "../maths/strength";
import { duration } from "../maths/text";
import { TextField } from "../ui/fields";
import { Button, ErrorNote, Form, Note, Panel, Scroll } from "../ui/parts";
import { hints } from "../words.json";
import { TransferLoss } from "./TransferLoss";
import { measure, measureEstimate, measureSize, working } from "./work";

/** The vector that was found: a quote at three stops of its dial, its card, and the measurement of its strengths. */
export function Result({ name }: { name: string }) {
  const vector = vectorNamed(name);
  const another = <Button label="Make another" kind="quiet" onClick={() => (card.value = null)} />;
  if (!vector)
    return (
      <Panel label="Quality" title={name}>
        <p class="muted">{hints.unread}</p>
        <div class="row">
          <Button label="Read the library again" kind="primary" onClick={() => library.ask()} />
          {another}
        </div>
      </Panel>
    );
  const use = () => {
    addVector(vector);
    open("compare");
  };
  const measurable = !vector.quality?.dose_response && mayDo("write");
  const [full, quick] = [measureEstimate("full"), measureEstimate("quick")];
  const time = full === null ? "How long it takes is shown once it runs" : `It takes ${duration(full)}`;
  const busy = working.value;
  return (
    <>
      <Quotes key={name} vector={vector} />
      <Panel label="Quality" title={vector.id}>
        <QualityCard vector={vector} />
        <TransferLoss vector={vector} />
        <div class="row">
          <Button label="Steer with it" kind="primary" onClick={use} />
          {measurable && <Button label="Measure its strengths" disabled={busy} onClick={() => measure(name)} />}
          {measurable && <Button label="Measure quickly" disabled={busy} onClick={() => measure(name, "quick")} />}
          {another}
        </div>
        {measurable && (
          <p class="small muted">
            Measuring writes {measureSize().answers.toLocaleString("en")} answers at nine strengths, with random
            directions beside them. {time}; the quick one {quick === null ? "is shorter" : `takes ${duration(quick)}`}{" "}
            and says less surely. Other requests go first, and both can be stopped at the top of the page.
          </p>
        )}
      </Panel>
    </>
  );
}

const PROMPT = "How was your day?";

/** The same prompt at both ends of the dial and without steering, asked as soon as there is a vector, or another version of it. */
export function Quotes({ vector }: { vector: Vector }) {
  const [prompt, setPrompt] = useState(PROMPT);
  const [asking] = useState(() => new Query(quotesOf));
  useEffect(() => {
    void asking.ask(vector, prompt.trim() === "" ? PROMPT : prompt);
    return () => asking.stop();
  }, [asking, vector.id]);
  const disabled = asking.busy.value || prompt.trim() === "";
  return (
    <section class="panel stack" aria-label="Quotes" aria-busy={asking.busy.value}>
      <Form kind="row" onSend={() => asking.ask(vector, prompt)}>
        <TextField label="Asked at three stops of its dial" value={prompt} onChange={setPrompt} />
        <Button label="Ask" submit disabled={disabled} />
      </Form>
      <ErrorNote error={asking.error.value} />
      <Scroll label="At three stops of its dial" kind="multiples">
        {(asking.data.value ?? []).map(({ name: strength, choices, error }) => (
          <article key={strength} class="multiple" aria-label={`Strength ${strength}`}>
            <p class="small">
              <strong>
                {strength === "0" ? "plain" : `${poleAt(vector.name, Number(strength))} (${signed(Number(strength))})`}
              </strong>
            </p>
            <p dir="auto">{choices[0]?.text}</p>
            {error && <Note kind="error">{error.message}</Note>}
          </article>
        ))}
      </Scroll>
    </section>
  );
}

async function quotesOf(signal: AbortSignal, vector: Vector, prompt: string) {
  const [negative, positive] = [-1, 1].map((sign) => zonesOf(vector, sign, typicalNorms.value, doseBound.value));
  const distilled = isDistilled(vector);
  const arms = (distilled ? [0, 1] : [-1, 0, 1]).map((share) => {
    const strength = distilled ? share : strengthAt(share, negative!, positive!);
    const steering = { ...(distilled ? DISTILLED : {}), vector: vector.name, strength };
    return { name: String(strength), steering: strength === 0 ? [] : [steering] };
  });
  const messages = [{ role: "user" as const, content: prompt }];
  const body = { messages, arms, baseline: "0", seed: 7, max_tokens: 40 };
  return (await dataOf<CompareAnswer>(api.POST("/v1/compare", { body, signal }))).arms;
}
