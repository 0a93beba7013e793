import { polygonHull } from "d3-polygon";
import { colour } from "../frame/theme";
import { type Box, overlap } from "../maths/geometry";
import { clamp, linear } from "../maths/scales";
import type { Corner } from "./scene";

type Context = CanvasRenderingContext2D;
/** A place on the canvas in CSS pixels. */
export type Place = [number, number];

export interface View {
  width: number;
  height: number;
  ratio: number;
  /** Angles of the camera in three dimensions. */
  yaw: number;
  pitch: number;
  /** By how much the picture is larger, and by how many pixels it was moved. */
  camera?: Camera;
}

export type Camera = { zoom: number; x: number; y: number };

/** Gives a canvas a size at the resolution of the screen. Returns the view of it. */
export function fitted(canvas: HTMLCanvasElement, view: View, width: number, height: number): View {
  const ratio = devicePixelRatio;
  Object.assign(canvas, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
  return { ...view, width, height, ratio };
}

/** Makes the picture larger or smaller around a place that stays where it is; the whole picture is the smallest. */
export function zoomed({ camera = WHOLE, width, height }: View, factor: number, x = width / 2, y = height / 2): Camera {
  const zoom = clamp(camera.zoom * factor, 1, MOST_ZOOM);
  if (zoom === 1) return WHOLE;
  const scale = zoom / camera.zoom;
  const [right, down] = [x - width / 2, y - height / 2];
  return { zoom, x: right - (right - camera.x) * scale, y: down - (down - camera.y) * scale };
}

const WHOLE: Camera = { zoom: 1, x: 0, y: 0 };
const MOST_ZOOM = 40;

export interface Scene {
  points: readonly (readonly number[])[];
  /** A colour per point, as an index into the palette. */
  colours: readonly number[];
  palette: readonly string[];
  /** The outline of the points of each colour; a circle where there is none. */
  marks: readonly (readonly Corner[])[];
  /** Segments of vectors, from the negative to the positive pole. */
  arrows: readonly { start: readonly number[]; end: readonly number[]; label: string }[];
  /** The way of the picked text through the layers. */
  trail: readonly (readonly number[])[];
  picked: number | null;
  hovered: number | null;
  lassoed: ReadonlySet<number>;
  lasso: readonly (readonly [number, number])[];
  /** Further ways through the layers, each in its colour. */
  ways?: readonly { points: readonly (readonly number[])[]; colour: string }[];
  /** The text of each point, shown where the picture is enlarged and there is room. */
  labels?: readonly string[];
  hulls?: boolean;
  dense?: boolean;
}

/** How many median distances lie between the middle and the edge of the picture. */
const REACH = 2.6;
const MARGIN = 14;
const RADIUS = 4;

/** Returns the place of a point on the canvas in CSS pixels, and its depth. */
export function project(point: readonly number[], view: View): [number, number, number] {
  let [x = 0, y = 0, z = 0] = point;
  if (point.length > 2) {
    const [cy, sy, cp, sp] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
    [x, z] = [cy * x + sy * z, -sy * x + cy * z];
    [y, z] = [cp * y - sp * z, sp * y + cp * z];
  }
  const reach = Math.min(view.width, view.height) / 2 - MARGIN;
  const place = linear([-REACH, REACH], [-reach, reach]);
  const { zoom, x: right, y: down } = view.camera ?? WHOLE;
  const bound = (value: number, size: number) => clamp(value, MARGIN / 2, size - MARGIN / 2);
  const at = (value: number, size: number, moved: number) =>
    zoom === 1 ? bound(size / 2 + value, size) : size / 2 + value * zoom + moved;
  return [at(place(x), view.width, right), at(-place(y), view.height, down), z];
}

/** Returns the place of a point on the canvas in CSS pixels. */
export const placeOf = (point: readonly number[], view: View) => project(point, view).slice(0, 2) as Place;

/** Returns the index of the point under the pointer, or null. */
export function nearest(points: readonly (readonly number[])[], view: View, x: number, y: number): number | null {
  let best: number | null = null;
  let distance = 14;
  points.forEach((point, index) => {
    const [px, py] = project(point, view);
    const away = Math.hypot(px - x, py - y);
    if (away < distance) [best, distance] = [index, away];
  });
  return best;
}

/** Draws one picture, with points of a radius in pixels. */
export function paint(canvas: HTMLCanvasElement, scene: Scene, view: View, radius = RADIUS): void {
  const ctx = canvas.getContext("2d");
  if (!ctx) return;
  ctx.setTransform(view.ratio, 0, 0, view.ratio, 0, 0);
  ctx.clearRect(0, 0, view.width, view.height);
  const [text, line, surface, accent] = [colour("text"), colour("line"), colour("surface"), colour("accent")];
  const [middle, half] = [view.height / 2, view.width / 2];
  stroke(ctx, [[MARGIN, middle], [view.width - MARGIN, middle]], line, 1); // biome-ignore format: one line
  stroke(ctx, [[half, MARGIN], [half, view.height - MARGIN]], line, 1); // biome-ignore format: one line
  if (scene.hulls) drawHulls(ctx, scene, view);
  if (scene.dense) drawDensity(ctx, scene, view);
  drawTrail(ctx, scene.trail, view, text);
  for (const way of scene.ways ?? []) drawTrail(ctx, way.points, view, way.colour, 3);
  const order = scene.points.map((point, index) => [index, ...project(point, view)] as const);
  if ((scene.points[0]?.length ?? 2) > 2) order.sort((a, b) => a[3] - b[3]);
  for (const [index, x, y] of order) {
    const marked = index === scene.picked || index === scene.hovered;
    const group = scene.colours[index] ?? 0;
    trace(ctx, scene.marks[group] ?? [], x, y, marked ? radius + 3 : radius);
    ctx.fillStyle = scene.palette[group] ?? text;
    ctx.globalAlpha = 0.85;
    ctx.fill();
    ctx.globalAlpha = 1;
    ctx.lineWidth = marked || scene.lassoed.has(index) ? 2 : 1;
    ctx.strokeStyle = marked || scene.lassoed.has(index) ? text : surface;
    ctx.stroke();
  }
  const labels = (view.camera?.zoom ?? 1) >= LABELLED ? labelsAt(scene.labels ?? [], order, view) : [];
  for (const { x, y, text } of labels) write(ctx, text, x, y, "12px", "text");
  for (const arrow of scene.arrows) drawArrow(ctx, arrow, view);
  if (scene.lasso.length < 2) return;
  ctx.setLineDash([4, 3]);
  stroke(ctx, scene.lasso, accent, 1.5);
  ctx.setLineDash([]);
}

/** From which zoom on points have their text, and how much of it. */
const LABELLED = 1.5;
const LONGEST = 26;
/** A point on the canvas: its index, its place and its depth. */
type Drawn = readonly [number, number, number, number];

/** Writes a text with a halo, so that it can be read over points. */
function write(ctx: Context, text: string, x: number, y: number, font: string, fill: string): void {
  ctx.font = `${font} system-ui, sans-serif`;
  ctx.lineWidth = 3;
  ctx.strokeStyle = colour("surface");
  ctx.fillStyle = colour(fill);
  ctx.strokeText(text, x, y);
  ctx.fillText(text, x, y);
}

/** Returns the labels that fit into the picture without lying on each other, in the order of the points. */
export function labelsAt(labels: readonly string[], points: readonly Drawn[], { width, height }: View) {
  const taken: Box[] = [];
  return points.flatMap(([index, px, py]) => {
    const label = labels[index] ?? "";
    const text = label.length > LONGEST ? `${label.slice(0, LONGEST - 1)}…` : label;
    const box = { left: px + 8, right: px + 8 + 7 * text.length, top: py - 8, bottom: py + 8 };
    const outside = px < 0 || py < 0 || px > width || py > height;
    if (text === "" || outside || taken.some((other) => overlap(box, other))) return [];
    taken.push(box);
    return [{ x: box.left, y: py + 4, text }];
  });
}

/** Returns the convex outline of the points of each colour. */
const hullsOf = (scene: Scene, view: View): Place[][] =>
  scene.palette.map((_, group) => {
    const own = scene.points.flatMap((point, index) => (scene.colours[index] === group ? [placeOf(point, view)] : []));
    return polygonHull(own) ?? own;
  });

const [HULL, TRAIL] = [0.12, 0.55];

function drawHulls(ctx: Context, scene: Scene, view: View): void {
  ctx.globalAlpha = HULL;
  hullsOf(scene, view).forEach((hull, group) => {
    ctx.beginPath();
    for (const [x, y] of hull) ctx.lineTo(x, y);
    ctx.closePath();
    ctx.fillStyle = scene.palette[group]!;
    ctx.fill();
  });
  ctx.globalAlpha = 1;
}

const CLOUD = 42;

/** Shades where points of a colour lie close together: each adds a soft cloud around it. */
function drawDensity(ctx: Context, scene: Scene, view: View): void {
  ctx.globalAlpha = clamp(4 / scene.points.length, 0.01, 0.2);
  scene.points.forEach((point, index) => {
    const [x, y] = placeOf(point, view);
    const cloud = ctx.createRadialGradient(x, y, 0, x, y, CLOUD);
    const fill = scene.palette[scene.colours[index] ?? 0] ?? colour("text");
    cloud.addColorStop(0, fill);
    cloud.addColorStop(1, fill.replace("rgb(", "rgba(").replace(")", ", 0)")); // fading to "transparent" would pass through grey
    ctx.fillStyle = cloud;
    ctx.fillRect(x - CLOUD, y - CLOUD, 2 * CLOUD, 2 * CLOUD);
  });
  ctx.globalAlpha = 1;
}

/** Returns a picture without its density as a drawing, each point with its text as its title. */
export function svgOf(scene: Scene, view: View, radius = RADIUS): string {
  const [accent, places] = [colour("accent"), scene.points.map((point) => placeOf(point, view))];
  const points = places.map(([x, y], index) => {
    const group = scene.colours[index] ?? 0;
    const corners = scene.marks[group] ?? [];
    const look = `fill="${scene.palette[group] ?? accent}"><title>${escaped(scene.labels?.[index] ?? "")}</title>`;
    const at = corners.map(([right, down]) => `${x + right * radius},${y + down * radius}`).join(" ");
    return at === ""
      ? `<circle cx="${x}" cy="${y}" r="${radius}" ${look}</circle>`
      : `<polygon points="${at}" ${look}</polygon>`;
  });
  const arrows = scene.arrows.map(({ start, end, label }) => {
    const [[ax, ay], [bx, by]] = [placeOf(start, view), placeOf(end, view)];
    const line = `<line x1="${ax}" y1="${ay}" x2="${bx}" y2="${by}" stroke="${accent}" stroke-width="3" marker-end="url(#head)"/>`;
    return `${line}<text x="${bx + 10}" y="${by - 10}" fill="${accent}" font-family="sans-serif" font-size="13">${escaped(label)}</text>`;
  });
  const hulls = (scene.hulls ? hullsOf(scene, view) : []).map((hull, group) => `<polygon points="${hull.join(" ")}" fill="${scene.palette[group]}" fill-opacity="${HULL}"/>`); // biome-ignore format: one line
  const trail = `<polyline points="${scene.trail.map((point) => placeOf(point, view)).join(" ")}" fill="none" stroke="${colour("text")}" stroke-width="1.5" stroke-opacity="${TRAIL}"/>`;
  const head = `<marker id="head" markerWidth="5" markerHeight="5" refX="2" refY="2.5" orient="auto"><path d="M0 0 5 2.5 0 5z" fill="${accent}"/></marker>`;
  const size = `width="${view.width}" height="${view.height}" viewBox="0 0 ${view.width} ${view.height}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size}><defs>${head}</defs>\n${[...hulls, trail, ...points, ...arrows].join("\n")}\n</svg>\n`;
}

const escaped = (text: string): string => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

function trace(ctx: Context, corners: readonly Corner[], x: number, y: number, radius: number): void {
  ctx.beginPath();
  if (corners.length === 0) ctx.arc(x, y, radius, 0, 2 * Math.PI);
  for (const [right, down] of corners) ctx.lineTo(x + right * radius, y + down * radius);
  ctx.closePath();
}

function stroke(ctx: Context, line: Scene["lasso"], colour: string, width: number): void {
  ctx.strokeStyle = colour;
  ctx.lineWidth = width;
  ctx.beginPath();
  for (const [x, y] of line) ctx.lineTo(x, y); // the first one only sets the start
  ctx.stroke();
}

function drawTrail(ctx: Context, trail: Scene["trail"], view: View, colour: string, width = 1.5): void {
  if (trail.length < 2) return;
  const places = trail.map((point) => placeOf(point, view));
  ctx.globalAlpha = TRAIL;
  stroke(ctx, places, colour, width);
  ctx.globalAlpha = 1;
  if (width < 2) return;
  ctx.fillStyle = colour;
  trace(ctx, [], ...places.at(-1)!, 2.5 * width); // where it has come to
  ctx.fill();
}

function drawArrow(ctx: Context, { start, end, label }: Scene["arrows"][number], view: View): void {
  const [[ax, ay], [bx, by]] = [placeOf(start, view), placeOf(end, view)];
  const angle = Math.atan2(by - ay, bx - ax);
  stroke(ctx, [[ax, ay], [bx, by]], colour("accent"), 3); // biome-ignore format: one line
  ctx.fillStyle = colour("accent");
  ctx.beginPath();
  for (const side of [0, 2.5, -2.5]) ctx.lineTo(bx + 8 * Math.cos(angle + side), by + 8 * Math.sin(angle + side));
  ctx.fill();
  write(ctx, label, Math.min(bx + 10, view.width - 90), Math.max(by - 10, 14), "600 13px", "accent");
}
