import { signal } from "@preact/signals";
import { api, dataOf, type Schemas } from "../api/client";
import { type Intervention, interventions, shortly } from "../compare/controls";
import { draft } from "../compare/draft";
import { Query } from "../core/query";
import { limit } from "../core/server";
import { visible } from "../maths/text";
import { of, Segments, typed } from "../ui/fields";
import { Button, ErrorNote, Form, type Shaded, Table } from "../ui/parts";
import { hints } from "../words.json";

const MODES = { plain: "Plain", steered: "Steered", difference: "What changes" } as const;

/** The logit lens: what the model would say next if it stopped at a layer. */
export function LensPanel() {
  const { data, busy, error } = lens;
  const names = draft.value.controls.filter(({ on }) => on).map(({ vector }) => vector);
  const steered =
    names.length > 0 ? `Steered as in Play: ${names.join(", ")}.` : "Add vectors in Play to see it steered.";
  const { value, onChange } = of(prompt);
  const { of: read, answer } = data.value ?? {};
  const old = read !== undefined && JSON.stringify(read) !== JSON.stringify(lensBody());
  const { layers = [], tokens = [] } = answer ?? {};
  const rows = layers.map(({ layer }, row) => {
    const cells = tokens.map((_, token): Shaded => {
      const { text, probability, changed, title } = cellOf(answer!, row, token, mode.value);
      const dim = mode.value === "difference" && !changed;
      return { text: dim ? "" : text, look: "amount", share: dim ? 0 : probability, title };
    });
    return [layer, ...cells];
  });
  const head = ["layer", ...tokens.map((token) => visible(token.text))];
  return (
    <section class="panel stack" aria-label="Logit lens" aria-busy={busy.value}>
      <h2>Logit lens</h2>
      <p class="small muted">{`${hints.lens} ${steered}`}</p>
      <Form kind="row" onSend={() => lens.ask()}>
        <input type="text" class="grow" aria-label="Text for the logit lens" value={value} {...typed(onChange)} />
        <Button label={busy.value ? "Reading" : "Read"} submit disabled={value === "" || busy.value} />
      </Form>
      <ErrorNote error={error.value} />
      {layers[0]?.steered != null && <Segments label="Reading" options={MODES} {...of(mode)} />}
      {old && <p class="small muted">{`This table is of “${read.prompt}”, ${withWords(read.steering)}.`}</p>}
      {answer && <Table {...TABLE} kind={old ? "lens stale" : "lens"} head={head} rows={rows.toReversed()} />}
    </section>
  );
}

const TABLE = { label: "Table of predictions by layer and word", look: "matrix" } as const;
const withWords = (steering: readonly Intervention[]) => steering.length === 0 ? "without steering" : `steered with ${steering.map(shortly).join(", ")}`; // biome-ignore format: one line

const prompt = signal("The capital of France is");
const mode = signal<keyof typeof MODES>("plain");

/** What the model would say if it stopped at each layer, plain and with the steering of Play. */
const lens = new Query(async (signal) => {
  const of = lensBody();
  const answer = await dataOf<Schemas["LogitLensAnswer"]>(api.POST("/v1/logit-lens", { body: of as never, signal }));
  if (of.steering.length === 0) mode.value = "plain";
  return { of, answer };
});

function lensBody() {
  const steering = interventions(draft.value.controls, draft.value.overall);
  return { prompt: prompt.value, steering, layers: "all" as const, top_k: Math.min(3, limit("max_top_logprobs", 3)) };
}

/** Returns one cell of the heat map, and whether steering changed the first prediction. */
export function cellOf({ layers }: Schemas["LogitLensAnswer"], row: number, token: number, shown: keyof typeof MODES) {
  const plain = layers[row]?.plain[token] ?? [];
  const steered = layers[row]?.steered?.[token] ?? plain;
  const list = shown === "plain" ? plain : steered;
  const share = (logprob: number | null | undefined) => Math.exp(logprob ?? -99);
  return {
    text: list[0] ? visible(list[0].text) : "",
    probability: share(list[0]?.logprob),
    changed: plain[0]?.id !== steered[0]?.id,
    title: list.map((one) => `${visible(one.text)} ${(100 * share(one.logprob)).toFixed(1)} %`).join(", "),
  };
}
