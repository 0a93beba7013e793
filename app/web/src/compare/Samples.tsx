import { domainOf, linear, meanOf, signed } from "../maths/scales";
import { Segments } from "../ui/Segments";
import type { Pane } from "./panes";
import { answerReading } from "./readback";
import { comparison, reader, sampleIndex } from "./store";

interface Props {
  panes: readonly Pane[];
  titles: Readonly<Record<string, string>>;
}

const WIDTH = 480;
const ROW = 26;
const LABEL = 96;

/** Several samples: what each of them says as a dot, an arm a row, and the choice of the one that is shown. */
export function Samples({ panes, titles }: Props) {
  const n = panes[0]?.choices.length ?? 0;
  return (
    <div class="panel stack">
      <Segments
        label="Sample"
        value={sampleIndex.value}
        options={Array.from({ length: n }, (_, index) => [index, String(index + 1)] as const)}
        onChange={(index) => {
          sampleIndex.value = index;
        }}
      />
      {reader.value && <DotPlot panes={panes} titles={titles} name={reader.value} />}
    </div>
  );
}

function DotPlot({ name, ...shown }: Props & { name: string }) {
  const rows = rowsOf(shown, name);
  const all = rows.flatMap((row) => row.values).filter((value): value is number => value !== null);
  if (all.length === 0) return null;
  const [low, high] = domainOf(all, 0.1);
  const x = linear([low, high], [LABEL + 8, WIDTH - 12]);
  const height = rows.length * ROW + 20;
  return (
    <figure>
      <figcaption class="small muted">What each sample says about {name}; the bar is the mean</figcaption>
      <svg class="dot-plot" viewBox={`0 0 ${WIDTH} ${height}`} role="img" aria-label={summary(rows, name)}>
        {low < 0 && high > 0 && <line x1={x(0)} x2={x(0)} y1={0} y2={height - 18} class="zero" />}
        {rows.map((row, index) => {
          const y = index * ROW + ROW / 2;
          const mean = meanOf(row.values);
          return (
            <g key={row.title}>
              <text x={LABEL} y={y + 4} text-anchor="end">
                {row.title}
              </text>
              {row.values.map((value, sample) =>
                value === null ? null : (
                  <circle
                    key={sample}
                    cx={x(value)}
                    cy={y}
                    r={sample === sampleIndex.value ? 6 : 4}
                    class={value < 0 ? "minus" : "plus"}
                  >
                    <title>{`sample ${sample + 1}: ${signed(value)}`}</title>
                  </circle>
                ),
              )}
              {mean !== null && <line x1={x(mean)} x2={x(mean)} y1={y - 9} y2={y + 9} class="mean" />}
            </g>
          );
        })}
        <text x={x(low)} y={height - 4}>
          {signed(low, 1)}
        </text>
        <text x={x(high)} y={height - 4} text-anchor="end">
          {signed(high, 1)}
        </text>
      </svg>
    </figure>
  );
}

interface Row {
  title: string;
  values: readonly (number | null)[];
}

function rowsOf({ panes, titles }: Props, name: string): Row[] {
  const asked = comparison.asked.value;
  return panes.map((pane) => ({
    title: titles[pane.name] ?? pane.name,
    values: pane.choices.map((_, choice) => answerReading(asked, name, pane.name, choice)?.mean ?? null),
  }));
}

function summary(rows: readonly Row[], name: string): string {
  return rows.map((row) => `${row.title}: ${name} ${signed(meanOf(row.values))}`).join(", ");
}
