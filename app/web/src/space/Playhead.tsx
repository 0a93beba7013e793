import { useEffect, useRef } from "preact/hooks";
import { coloursChanged, inFrames, reducedMotion } from "../frame/theme";
import { spread } from "../maths/geometry";
import { clamp, plain } from "../maths/scales";
import { Chart, endsOf } from "../ui/Chart";
import { Slider, stepped } from "../ui/fields";
import { Button, Panel } from "../ui/parts";
import { hints } from "../words.json";
import { paint } from "./draw";
import { scene } from "./scene";
import { bestMaps, layerName, layers, maps, playhead, playing } from "./store";

const LAYERS_PER_SECOND = 1.6;

export function Playhead() {
  const last = maps.value.length - 1;
  useEffect(() => (playing.value ? play(last) : undefined), [playing.value, last]);
  if (last < 1) return null;
  const toggle = () => {
    if (!playing.value && playhead.value >= last) playhead.value = 0;
    playing.value = !playing.value;
  };
  return (
    <div class="row playhead">
      <Button label={playing.value ? "Pause" : "Play"} onClick={toggle} pressed={playing.value} />
      <Slider
        aria-label="Layer"
        aria-valuetext={layerName(Math.round(playhead.value))}
        max={last}
        step={reducedMotion() ? 1 : 0.02}
        value={playhead.value}
        onMove={goTo}
        {...stepped((step) => goTo(clamp(Math.round(playhead.value) + step, 0, last)))}
      />
      <output class="number">{layerName(Math.round(playhead.value))}</output>
    </div>
  );
}

function goTo(at: number): void {
  playing.value = false;
  playhead.value = at;
}

/** Moves the playhead until the last layer; in whole steps for a reader who wants less motion. */
function play(last: number): () => void {
  const [steps, begin] = [reducedMotion(), playhead.peek()];
  return inFrames((seconds) => {
    const exact = begin + seconds * LAYERS_PER_SECOND;
    playhead.value = Math.min(steps ? Math.floor(exact) : exact, last);
    if (exact >= last) playing.value = false;
    return exact >= last;
  });
}

/** How well the labels stand apart at each layer, with the playhead on the curve. */
export function Separability() {
  const list = maps.value;
  const auroc = list.map((map) => map.separability?.auroc ?? null);
  if (list.length === 0) return null;
  if (auroc.every((value) => value === null))
    return (
      <Panel label="Separability">
        <p class="muted">{hints.unlabelled}</p>
      </Panel>
    );
  const x = list.map((map) => map.layer ?? -1);
  const bounds = list.map((map) => (map.separability as { auroc_interval?: [number, number] } | null)?.auroc_interval);
  return (
    <Panel label="Separability">
      <Chart
        title="How well the labels can be separated at each layer (AUROC of a linear reading; −1 is the input)"
        x={x}
        xLabel="layer"
        yRange={[0.3, 1.02]}
        mark={x[Math.round(playhead.value)] ?? null}
        series={{ strong: auroc, ...endsOf(bounds) }}
        describe={(index) => `${layerName(index)}: ${plain(auroc[index])}`}
        onPick={(index) => (playhead.value = index)}
      />
      <p>{sentence(auroc, Math.round(playhead.value))}</p>
    </Panel>
  );
}

function sentence(auroc: readonly (number | null)[], at: number): string {
  const input = auroc[0] ?? 0.5;
  const here = auroc[at] ?? 0.5;
  if (at === 0)
    return input >= 0.9
      ? `Here only the words themselves count, and they already tell the labels apart (${plain(input)}).`
      : `Here only the words themselves count; they tell the labels apart with ${plain(input)}, where 0.5 is chance.`;
  const best = bestMaps.value; // those that are equally good by the figure shown
  const figure = plain(auroc[best[0] ?? 0]);
  const more = best.length > 3 ? [`${best.length - 3} more`] : [];
  const listed = [...best.slice(0, 3).map(layerName), ...more];
  const all = `The best are ${listed.slice(0, -1).join(", ")} and ${listed.at(-1)} with ${figure} each.`;
  const words = best.length < 2 ? `The best is ${layerName(best[0] ?? 0)} with ${figure}.` : all;
  const change = here - input;
  const trend =
    change > 0.05
      ? "The model tells the labels apart better than the words alone do"
      : change < -0.05
        ? "The model has moved away from what tells the labels apart"
        : "The labels are as far apart as in the words alone";
  return `${trend}: ${plain(here)} here, ${plain(input)} at the input. ${words}`;
}

const FRAMES = 8;
const [WIDTH, HEIGHT] = [104, 68];

/** The picture at some of the layers next to each other; a click goes there. */
export function FilmStrip() {
  const all = layers.value.map((_, index) => index);
  if (all.length < 3) return null;
  const at = Math.round(playhead.value);
  const frames = spread(all, FRAMES);
  const nearest = frames.reduce((best, one) => (Math.abs(one - at) < Math.abs(best - at) ? one : best));
  return (
    <ol class="film" aria-label="Film strip of the layers">
      {frames.map((index) => (
        <li key={index}>
          <Button pressed={index === nearest} onClick={() => goTo(index)}>
            <Frame index={index} />
            <span class="small">{layerName(index)}</span>
          </Button>
        </li>
      ))}
    </ol>
  );
}

function Frame({ index }: { index: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const points = layers.value[index]?.points;
  const colours = scene.value?.colours;
  useEffect(() => {
    const base = scene.peek();
    if (!canvas.current || !base || !points) return;
    const plain = { ...base, points, arrows: [], trail: [], picked: null, lassoed: new Set<number>(), labels: [], hulls: false, dense: false }; // biome-ignore format: one line
    paint(canvas.current, plain, { width: WIDTH, height: HEIGHT, ratio: 2, yaw: 0.6, pitch: 0.35 }, 2);
  }, [points, colours, coloursChanged.value]);
  return <canvas ref={canvas} width={2 * WIDTH} height={2 * HEIGHT} />;
}
