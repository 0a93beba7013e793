import { fullScale, magnitude, signed } from "../maths/scales";
import { Button } from "../ui/Button";
import { ErrorNote } from "../ui/Note";
import { run, sweep, swept } from "./store";

/** The same prompt at the stops of a dial: a strip of answers, coloured by what each says. A click sets the dial. */
export function Sweep({ name, onPick }: { name: string; onPick: (strength: number) => void }) {
  const panes = sweep.panes.value;
  const scores = panes.map((pane) => pane.metrics?.readout[name]?.mean ?? null);
  const plainScore = scores[panes.findIndex((pane) => Number(pane.name) === 0)] ?? 0;
  const full = fullScale(scores.map((score) => (score ?? plainScore) - plainScore), 0.3); // biome-ignore format: one line
  const take = (strength: number) => {
    onPick(strength);
    run();
  };
  const close = () => {
    swept.value = null;
    sweep.close();
  };
  return (
    <section class="sweep" aria-label={`Sweep of ${name}`} aria-busy={sweep.running.value}>
      <div class="row between small">
        <span>{sweep.running.value ? "Writing" : "A click sets the dial"}</span>
        <Button label="Close" kind="quiet" onClick={close} />
      </div>
      <ErrorNote error={sweep.error.value} />
      <ol>
        {panes.map((pane, index) => {
          const away = (scores[index] ?? plainScore) - plainScore;
          return (
            <li key={pane.name}>
              <button
                type="button"
                class={`multiple ${away < 0 ? "below" : "above"}`}
                style={{ "--m": magnitude(away, full) }}
                title={`Set ${name} to ${signed(Number(pane.name))}`}
                onClick={() => take(Number(pane.name))}
              >
                <strong class="number small">{Number(pane.name) === 0 ? "plain" : signed(Number(pane.name))}</strong>
                <span dir="auto">{pane.error ?? pane.choices[0]?.text}</span>
              </button>
            </li>
          );
        })}
      </ol>
    </section>
  );
}
