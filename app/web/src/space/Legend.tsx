import { type Corner, LOOKS, labelNames, markOf, palette } from "./scene";
import { colourBy, scoredVector } from "./store";

/** What the colours and the marks of the map mean. */
export function Legend() {
  const name = scoredVector.value;
  if (colourBy.value === "score" && name !== null) return <ScoreLegend name={name} />;
  const names = labelNames.value;
  if (colourBy.value !== "label" || names.length === 0) return null;
  return (
    <>
      <ul class="row legend small" aria-label="Labels">
        {names.map((label, group) => (
          <li key={label} class="row">
            <Swatch colour={palette.value[group]} corners={markOf(group)} />
            {label}
          </li>
        ))}
      </ul>
      {names.length > LOOKS && <p class="small muted">Colours and marks repeat after {LOOKS} labels.</p>}
    </>
  );
}

/** The colours of the scores, which are distances from the middle of the drawn texts. */
function ScoreLegend({ name }: { name: string }) {
  const ends = [
    [palette.value[(palette.value.length - 1) / 2], `less ${name}`],
    [palette.value[0], "the middle of these texts, or not read"],
    [palette.value.at(-1), `more ${name}`],
  ] as const;
  return (
    <ul class="row legend small" aria-label="Scores">
      {ends.map(([colour, words]) => (
        <li key={words} class="row">
          <Swatch colour={colour} corners={[]} />
          {words}
        </li>
      ))}
    </ul>
  );
}

/** A mark as it is on the map. */
function Swatch({ colour, corners }: { colour: string | undefined; corners: readonly Corner[] }) {
  return (
    <svg class="swatch" viewBox="-1.6 -1.6 3.2 3.2" fill={colour ?? ""} aria-hidden="true">
      {corners.length > 0 ? <polygon points={corners.join(" ")} /> : <circle r={1} />}
    </svg>
  );
}
