import { api, dataOf, type Explanation } from "../api/client";
import { Query } from "../core/query";
import { Ask, ErrorNote, More, scored, Table, Warnings } from "../ui/parts";
import { hints } from "../words.json";
import type { CompareBody } from "./draft";
import type { Pane } from "./run";
import { comparison, reader, sampleIndex } from "./store";

/** The scores of every answer of each thread against a vector, as z by turn; and what they are of. */
const drift = new Query(async (signal, asked: CompareBody, panes: readonly Pane[], vector: string) => {
  const texts = panes.map(({ name, choices }) => {
    const answer = (choices[sampleIndex.peek()] ?? choices[0])?.text ?? "";
    return [...(asked.threads?.[name] ?? []), { role: "assistant" as const, content: answer }];
  });
  const body = { texts, vectors: [vector], turns: true, threshold: 0 };
  const found = await dataOf<Explanation>(api.POST("/v1/explain", { body: body as never, signal }));
  const turns = found.texts.map(({ concepts }) => concepts[0]?.turns?.map(({ z }) => z) ?? []);
  return { asked, vector, turns, warnings: found.warnings };
});

/** How far each answer of a conversation leans toward a concept, thread by thread: its drift by turn. */
export function Drift({ titles }: { titles: Readonly<Record<string, string>> }) {
  const { asked: signal, panes, running } = comparison;
  const [asked, vector] = [signal.value, reader.value];
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
