import type { LogitLens } from "../api/types";
import { draft } from "../compare/draft";
import { Button } from "../ui/Button";
import { ErrorNote } from "../ui/Note";
import { Segments } from "../ui/Segments";
import { cellOf, type LensMode, lens, lensBusy, lensError, mode, prompt, readLens } from "./lens";

/** The logit lens: what the model would say next if it stopped at a layer. */
export function LensPanel() {
  const answer = lens.value;
  const steered = answer?.layers[0]?.steered != null;
  const names = draft.value.controls.filter((control) => control.on).map((control) => control.vector);
  const submit = (event: Event) => {
    event.preventDefault();
    void readLens();
  };
  return (
    <section class="panel stack" aria-label="Logit lens" aria-busy={lensBusy.value}>
      <h2>Logit lens</h2>
      <p class="small muted">
        What the model would say next if it stopped at a layer. The answer forms from the bottom row up.
        {names.length > 0
          ? ` Steered as in Compare: ${names.join(", ")}.`
          : " Add vectors in Compare to see it steered."}
      </p>
      <form class="row" onSubmit={submit}>
        <input
          type="text"
          class="grow"
          aria-label="Text for the logit lens"
          value={prompt.value}
          onInput={(event) => {
            prompt.value = event.currentTarget.value;
          }}
        />
        <Button submit disabled={prompt.value === "" || lensBusy.value}>
          {lensBusy.value ? "Reading" : "Read"}
        </Button>
      </form>
      <ErrorNote error={lensError.value} />
      {answer && steered && (
        <Segments<LensMode>
          label="Reading"
          value={mode.value}
          options={[
            ["plain", "Plain"],
            ["steered", "Steered"],
            ["difference", "What changes"],
          ]}
          onChange={(next) => {
            mode.value = next;
          }}
        />
      )}
      {answer && <LensTable answer={answer} />}
    </section>
  );
}

function LensTable({ answer }: { answer: LogitLens }) {
  const rows = answer.layers.map((_, index) => answer.layers.length - 1 - index);
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard
    <div class="scroll lens" tabIndex={0} role="region" aria-label="Table of predictions by layer and word">
      <table class="matrix">
        <thead>
          <tr>
            <th scope="col">layer</th>
            {answer.tokens.map((token, index) => (
              <th key={index} scope="col">
                {token.text}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row}>
              <th scope="row" class="number">
                {answer.layers[row]?.layer}
              </th>
              {answer.tokens.map((_, token) => {
                const cell = cellOf(answer, row, token, mode.value);
                const dim = mode.value === "difference" && !cell.changed;
                return (
                  <td key={token} class="amount" title={cell.title} style={{ "--m": dim ? 0 : cell.probability }}>
                    {dim ? "" : cell.text}
                  </td>
                );
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
