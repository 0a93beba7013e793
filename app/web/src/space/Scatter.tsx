import { batch } from "@preact/signals";
import { polygonContains } from "d3-polygon";
import { useEffect, useRef, useState } from "preact/hooks";
import { coloursChanged } from "../frame/theme";
import { clamp } from "../maths/scales";
import { Button, useSize } from "../ui/parts";
import { fitted, nearest, type Place, paint, placeOf, project, type View, zoomed } from "./draw";
import { type Corner, LOOKS, labelNames, markOf, palette, scene } from "./scene";
import * as space from "./store";
import { dense, outlined } from "./store";

type Drag = { x: number; y: number; line: Place[] };

/** The view of the map that was painted last. */
export const shown: { view: View | null } = { view: null };

/** The scatter: moving the pointer shows a text, a click follows it through the layers, dragging selects or turns, two fingers enlarge. */
export function Scatter() {
  const canvas = useRef<HTMLCanvasElement>(null);
  const view = useRef<View>({ width: 0, height: 0, ratio: 1, yaw: 0.6, pitch: 0.35 });
  const drag = useRef<Drag | null>(null);
  const pressed = useRef(new Map<number, Place>());
  const presses = useRef<(() => void)[]>([]);
  const [hovered, setHovered] = useState<number | null>(null);
  const [moving, setMoving] = useState(false);
  const repaint = () => {
    const base = scene.peek();
    const lasso = drag.current?.line ?? [];
    shown.view = view.current;
    if (canvas.current && base) paint(canvas.current, { ...base, hovered, lasso }, view.current);
  };
  useEffect(repaint, [scene.value, coloursChanged.value, hovered]);
  const box = () => canvas.current?.parentElement;
  useSize(box, (width, height) => {
    if (!canvas.current) return; // the tab was left
    view.current = fitted(canvas.current, view.current, width, height);
    repaint();
  });
  const flat = (space.drawn.value?.answer.layers[0]?.points[0]?.length ?? 2) < 3;
  const place = `${space.drawn.value?.set.texts.length ?? 0} texts at ${space.layerName(Math.round(space.playhead.value))}`;
  const onMove = (event: PointerEvent) => {
    const { offsetX: x, offsetY: y, pointerId } = event;
    if (pressed.current.size > 1) pinch(pressed.current, pointerId, [x, y], zoom);
    else if (!drag.current) setHovered(nearest(scene.peek()?.points ?? [], view.current, x, y));
    else if (moving || event.shiftKey) move(view.current, drag.current, x, y);
    else if (flat) drag.current.line.push([x, y]);
    else turn(view.current, ...followed(drag.current, x, y));
    if (drag.current) repaint();
  };
  const onUp = (event: PointerEvent) => {
    pressed.current.delete(event.pointerId);
    if (!drag.current) return; // two fingers enlarged the map
    const { line } = drag.current;
    drag.current = null;
    const points = scene.peek()?.points ?? [];
    const inside = (index: number) => polygonContains(line, placeOf(points[index]!, view.current));
    if (line.length > 8 && flat && !moving && !event.shiftKey) space.lasso([...points.keys()].filter(inside));
    else if (line.length <= 2) pick(nearest(points, view.current, event.offsetX, event.offsetY));
    repaint();
  };
  const zoom: Zoom = (factor, x, y) => {
    view.current = { ...view.current, camera: zoomed(view.current, factor, x, y) };
    repaint();
  };
  return (
    <div class="scatter">
      <Tools {...{ zoom, moving, setMoving }} />
      <canvas
        ref={canvas}
        role="img"
        aria-label={`${place}; the list below has them as text${flat ? "" : "; the arrow keys turn it"}`}
        tabIndex={flat ? undefined : 0}
        onKeyDown={(event) => !flat && turnedBy(event, view.current) && repaint()}
        onPointerDown={(event) => {
          event.currentTarget.setPointerCapture(event.pointerId);
          presses.current = [...presses.current.slice(-1), restoringSelection()];
          pressed.current.set(event.pointerId, [event.offsetX, event.offsetY]);
          drag.current = pressed.current.size > 1 ? null : { x: event.offsetX, y: event.offsetY, line: [] };
        }}
        onPointerMove={onMove}
        onWheel={(event) => wheel(event, zoom)}
        onDblClick={(event) => {
          presses.current[0]?.(); // the first of the two clicks may have cleared the selection
          zoom(STEP, event.offsetX, event.offsetY);
        }}
        onPointerUp={onUp}
        onPointerCancel={({ pointerId }) => {
          pressed.current.delete(pointerId);
          drag.current = null; // the browser has taken the pointer, and it will not be lifted here
          repaint();
        }}
        onPointerLeave={() => setHovered(null)}
      />
      {hovered !== null && <Tip index={hovered} view={view.current} />}
    </div>
  );
}

type Zoom = (factor: number, x?: number, y?: number) => void;

/** Follows one of two fingers: the place in the middle between them stays where it is. */
function pinch(pressed: Map<number, Place>, id: number, to: Place, zoom: Zoom): void {
  const from = pressed.get(id);
  const [, other] = [...pressed].find(([one]) => one !== id) ?? [];
  if (!from || !other) return;
  pressed.set(id, to);
  const apart = ([x, y]: Place) => Math.max(Math.hypot(x - other[0], y - other[1]), 1);
  zoom(apart(to) / apart(from), (to[0] + other[0]) / 2, (to[1] + other[1]) / 2);
}

function wheel(event: WheelEvent, zoom: Zoom): void {
  if (!event.ctrlKey && !event.metaKey) return; // the page scrolls; a pinch on a touchpad has the key
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 200), event.offsetX, event.offsetY);
}

type ToolsProps = { zoom: Zoom; moving: boolean; setMoving: (on: boolean) => void };

const Tools = ({ zoom, moving, setMoving }: ToolsProps) => (
  <div class="row zoom">
    <Button label="Closer" kind="quiet" onClick={() => zoom(STEP)} />
    <Button label="Farther" kind="quiet" onClick={() => zoom(1 / STEP)} />
    <Button label="Move" kind="quiet" pressed={moving} onClick={() => setMoving(!moving)} />
    <Button label="Outlines" kind="quiet" pressed={outlined.value} onClick={() => (outlined.value = !outlined.value)} />
    <Button label="Density" kind="quiet" pressed={dense.value} onClick={() => (dense.value = !dense.value)} />
  </div>
);

/** How much closer a click on the button goes. */
const STEP = 1.6;

/** Follows the pointer with a drag, and returns by how much it moved. A pointer that moved picks no point. */
function followed(drag: Drag, x: number, y: number): [number, number] {
  const by: [number, number] = [x - drag.x, y - drag.y];
  [drag.x, drag.y] = [x, y];
  drag.line.push([x, y]);
  return by;
}

function move(view: View, drag: Drag, x: number, y: number): void {
  const { zoom, x: left, y: top } = view.camera ?? { zoom: 1, x: 0, y: 0 };
  const [right, down] = followed(drag, x, y);
  if (zoom > 1) view.camera = { zoom, x: left + right, y: top + down };
}

function pick(index: number | null): void {
  space.picked.value = index === space.picked.value ? null : index;
  if (index === null) space.lasso([]); // a click on no point clears the selection
}

/** Returns what restores the selection of now. */
function restoringSelection(): () => void {
  const [text, texts, list] = [space.picked.peek(), space.lassoed.peek(), space.listed.peek()];
  return () =>
    batch(() => {
      space.picked.value = text;
      space.lassoed.value = texts;
      space.listed.value = list;
    });
}

/** By how many pixels of the pointer an arrow key turns three dimensions. */
const TURNS: Readonly<Record<string, readonly [number, number]>> = {
  ArrowRight: [18, 0],
  ArrowLeft: [-18, 0],
  ArrowDown: [0, 18],
  ArrowUp: [0, -18],
};

function turnedBy(event: KeyboardEvent, view: View): boolean {
  const by = TURNS[event.key];
  if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return false;
  event.preventDefault(); // the page does not scroll
  turn(view, ...by);
  return true;
}

function turn(view: View, right: number, down: number): void {
  view.yaw += right / 120;
  view.pitch = clamp(view.pitch + down / 120, -1.4, 1.4);
}

function Tip({ index, view }: { index: number; view: View }) {
  const set = space.drawn.value?.set;
  const point = scene.value?.points[index];
  if (!set || !point) return null;
  const [x, y] = project(point, view);
  const side = x > view.width / 2 ? { right: `${view.width - x + 12}px` } : { left: `${x + 12}px` };
  const edge = y > view.height / 2 ? { bottom: `${view.height - y + 8}px` } : { top: `${y + 8}px` };
  return (
    <div class="tip" style={{ ...side, ...edge }}>
      {set.labels && <strong>{set.labels[index]}: </strong>}
      {set.texts[index]}
    </div>
  );
}

export function Legend() {
  const [name, names, colours] = [space.scoredVector.value, labelNames.value, palette.value];
  if (space.colourBy.value === "score" && name !== null) {
    const ends = [colours[(colours.length - 1) / 2], colours[0], colours.at(-1)];
    const words = [`less ${name}`, "the middle of these texts, or not read", `more ${name}`];
    return <Keys label="Scores" keys={words.map((text, index) => [text, ends[index], []])} />;
  }
  if (space.colourBy.value !== "label" || names.length === 0) return null;
  return (
    <>
      <Keys label="Labels" keys={names.map((text, group) => [text, colours[group], markOf(group)])} />
      {names.length > LOOKS && <p class="small muted">Colours and marks repeat after {LOOKS} labels.</p>}
    </>
  );
}

type KeysProps = { label: string; keys: readonly (readonly [string, string | undefined, readonly Corner[]])[] };

function Keys({ label, keys }: KeysProps) {
  return (
    <ul class="row legend small" aria-label={label}>
      {keys.map(([words, colour, corners]) => (
        <li key={words} class="row">
          <svg class="swatch" viewBox="-1.6 -1.6 3.2 3.2" fill={colour ?? ""} aria-hidden="true">
            {corners.length > 0 ? <polygon points={corners.join(" ")} /> : <circle r={1} />}
          </svg>
          {words}
        </li>
      ))}
    </ul>
  );
}
