import { useEffect, useRef } from "preact/hooks";
import { coloursChanged } from "../frame/theme";
import { spread } from "../maths/geometry";
import { paint } from "./draw";
import { scene } from "./scene";
import { layerName, layers, playhead, playing } from "./store";

const FRAMES = 8;
const [WIDTH, HEIGHT] = [104, 68];

/** The picture at some of the layers next to each other; a click goes there. */
export function FilmStrip() {
  const all = layers.value.map((_, index) => index);
  if (all.length < 3) return null;
  const at = Math.round(playhead.value);
  const frames = spread(all, FRAMES);
  const nearest = frames.reduce((best, one) => (Math.abs(one - at) < Math.abs(best - at) ? one : best));
  const go = (index: number) => {
    playing.value = false;
    playhead.value = index;
  };
  return (
    <ol class="film" aria-label="Film strip of the layers">
      {frames.map((index) => (
        <li key={index}>
          <button type="button" aria-pressed={index === nearest} onClick={() => go(index)}>
            <Frame index={index} />
            <span class="small">{layerName(index)}</span>
          </button>
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
    const plain = { ...base, points, arrows: [], trail: [], picked: null, lassoed: new Set<number>(), labels: [], hulls: false }; // biome-ignore format: one line
    paint(canvas.current, plain, { width: WIDTH, height: HEIGHT, ratio: 2, yaw: 0.6, pitch: 0.35 }, 2);
  }, [points, colours, coloursChanged.value]);
  return <canvas ref={canvas} width={2 * WIDTH} height={2 * HEIGHT} />;
}
