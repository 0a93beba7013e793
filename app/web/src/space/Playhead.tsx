import { useEffect } from "preact/hooks";
import { reducedMotion } from "../frame/theme";
import { layerName, maps, playhead, playing } from "./store";

const LAYERS_PER_SECOND = 1.6;

/** The slider through the layers, and the button that moves it. */
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
      <button type="button" onClick={toggle} aria-pressed={playing.value}>
        {playing.value ? "Pause" : "Play"}
      </button>
      <input
        type="range"
        aria-label="Layer"
        aria-valuetext={layerName(Math.round(playhead.value))}
        min={0}
        max={last}
        step={reducedMotion() ? 1 : 0.02}
        value={playhead.value}
        onInput={(event) => {
          playing.value = false;
          playhead.value = event.currentTarget.valueAsNumber;
        }}
        onKeyDown={(event) => {
          const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
          if (step === undefined) return;
          event.preventDefault();
          playing.value = false;
          playhead.value = Math.min(Math.max(Math.round(playhead.value) + step, 0), last);
        }}
      />
      <output class="number">{layerName(Math.round(playhead.value))}</output>
    </div>
  );
}

/** Moves the playhead until the last layer; in whole steps for a reader who wants less motion. */
function play(last: number): () => void {
  const steps = reducedMotion();
  let frame = 0;
  let before = performance.now();
  let exact = playhead.peek();
  const tick = (now: number) => {
    exact += ((now - before) / 1000) * LAYERS_PER_SECOND;
    before = now;
    playhead.value = Math.min(steps ? Math.floor(exact) : exact, last);
    if (exact >= last) playing.value = false;
    else frame = requestAnimationFrame(tick);
  };
  frame = requestAnimationFrame(tick);
  return () => cancelAnimationFrame(frame);
}
