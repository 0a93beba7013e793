import { magnitude, signed } from "../maths/scales";
import { choose, chosen, reading } from "./store";

/** Deviations from neutral texts that count as standing out. */
const STANDS_OUT = 2;
const FULL = 8;

/** The concepts of the library, what stands out first. */
export function Standouts() {
  const list = reading.value?.standouts ?? [];
  const strong = list.filter((one) => stands(one.z)).length;
  return (
    <section class="panel stack" aria-label="Concepts">
      <h2>{strong === 0 ? "Nothing stands out" : `${strong} of ${list.length} stand out`}</h2>
      <ul class="standouts">
        {list.map((one) => (
          <li key={one.vector}>
            <button
              type="button"
              aria-pressed={one.vector === chosen.value}
              onClick={() => choose(one.vector)}
              title={`Read at layer ${one.layer}; in standard deviations of neutral texts`}
            >
              <span class="name">{one.vector}</span>
              <Bar z={one.z} />
              <span class="number small">{signed(one.z, 1)}</span>
              {stands(one.z) && one.carriers.length > 0 && (
                <span class="carriers small muted">in: {one.carriers.join(", ")}</span>
              )}
            </button>
          </li>
        ))}
      </ul>
      <p class="small muted">
        How many standard deviations the text lies from neutral texts. Beyond ±{STANDS_OUT} is unusual; the words that
        carry a concept most stand below it.
      </p>
    </section>
  );
}

function stands(z: number | null): boolean {
  return Math.abs(z ?? 0) >= STANDS_OUT;
}

function Bar({ z }: { z: number | null }) {
  const share = magnitude(z ?? 0, FULL) * 50;
  const minus = (z ?? 0) < 0;
  return (
    <span class="deviation" aria-hidden="true">
      <span class={minus ? "minus" : "plus"} style={{ width: `${share}%`, left: minus ? `${50 - share}%` : "50%" }} />
    </span>
  );
}
