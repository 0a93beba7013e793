import { vectorByName, vectors } from "../core/vectors";
import { signed } from "../maths/scales";
import { Button } from "../ui/Button";
import { ErrorNote, Warnings } from "../ui/Note";
import { Scroll } from "../ui/Table";
import { type Similarities, similar } from "./store";

/** The cosine of every pair of vectors, as a table of colours and numbers. */
export function Similarity() {
  const list = vectors.value ?? [];
  if (list.length < 2) return null;
  const found = similar.data.value;
  const shown = found?.names.every((name) => vectorByName.value.has(name)) ? found : null; // not those of a former key
  return (
    <section class="panel stack" aria-label="Similarity">
      <div class="row between">
        <h2>Similarity</h2>
        <Button
          label={shown ? "Compare again" : "Compare all vectors"}
          disabled={similar.busy.value}
          onClick={() => void similar.ask(list)}
        />
      </div>
      <p class="small muted">
        Cosine of the directions, averaged over the layers: +1 is the same direction, 0 unrelated, −1 the opposite.
      </p>
      <ErrorNote error={similar.error.value} />
      <Warnings of={shown?.warnings} />
      {shown && <Matrix {...shown} />}
      {shown && shown.names.length < list.length && (
        <p class="small muted">
          The table has {shown.names.length} of {list.length} vectors.
        </p>
      )}
    </section>
  );
}

function Matrix({ names, cosine }: Pick<Similarities, "names" | "cosine">) {
  return (
    <Scroll label="Table of similarities">
      <table class="matrix">
        <thead>
          <tr>
            <td />
            {names.map((name) => (
              <th key={name} scope="col">
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {names.map((name, i) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              {names.map((other, j) => {
                const value = cosine[i]?.[j] ?? null;
                return (
                  <td
                    key={other}
                    class={value !== null && value < 0 ? "below" : "above"}
                    style={{ "--m": i === j ? 0 : Math.abs(value ?? 0) }}
                  >
                    {i === j ? "" : signed(value)}
                  </td>
                );
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </Scroll>
  );
}
