import { plain, signed } from "../maths/scales";
import { Button } from "../ui/Button";
import { Chart } from "../ui/Chart";
import { ErrorNote, Note } from "../ui/Note";
import type { Pane } from "./run";
import { reader, sweep } from "./store";

/** The same prompt at several multiples of the strengths: the texts, and below them concept and coherence. */
export function Sweep() {
  const panes = sweep.panes.value;
  if (panes.length === 0 && sweep.error.value === null) return null;
  return (
    <section class="panel stack" aria-label="Sweep" aria-busy={sweep.running.value}>
      <div class="row between">
        <h2>Sweep</h2>
        <Button label="Close" kind="quiet" onClick={() => sweep.close()} />
      </div>
      <ErrorNote error={sweep.error.value} />
      <div class="multiples">
        {panes.map((pane) => (
          <article key={pane.name} class="multiple" aria-label={`Strength times ${pane.name}`}>
            <h3 class="number">{pane.name === "0" ? "unsteered" : `× ${signed(Number(pane.name), 1)}`}</h3>
            <p dir="auto">{pane.choices[0]?.text}</p>
            {pane.error && <Note kind="error">{pane.error}</Note>}
          </article>
        ))}
      </div>
      {!sweep.running.value && <Curves panes={panes} />}
    </section>
  );
}

function Curves({ panes }: { panes: readonly Pane[] }) {
  const name = reader.value;
  const x = panes.map((pane) => Number(pane.name));
  const base = panes.find((pane) => pane.name === "0")?.metrics?.perplexity;
  const ratio = panes.map((pane) => (pane.metrics?.perplexity && base ? pane.metrics.perplexity / base : null));
  return (
    <div class="charts">
      {name && (
        <Chart
          title={`What the text says about ${name}`}
          x={x}
          xLabel="multiple of the strength"
          series={[
            { label: name, values: panes.map((pane) => pane.metrics?.readout[name]?.mean ?? null), look: "strong" },
          ]}
          describe={(index) => `× ${signed(x[index])}: ${signed(panes[index]?.metrics?.readout[name]?.mean)}`}
        />
      )}
      <Chart
        title="Coherence: perplexity against the unsteered text"
        x={x}
        xLabel="multiple of the strength"
        series={[{ label: "perplexity ratio", values: ratio, look: "strong" }]}
        describe={(index) => `× ${signed(x[index])}: ${plain(ratio[index], 1)} times the unsteered perplexity`}
      />
    </div>
  );
}
