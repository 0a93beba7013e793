import { colour } from "../frame/theme";
import { linear } from "../maths/scales";
import type { Corner } from "./scene";

export interface View {
  width: number;
  height: number;
  ratio: number;
  /** Angles of the camera in three dimensions. */
  yaw: number;
  pitch: number;
}

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
  const bound = (value: number, size: number) => Math.min(Math.max(value, MARGIN / 2), size - MARGIN / 2);
  return [bound(view.width / 2 + place(x), view.width), bound(view.height / 2 - place(y), view.height), z];
}

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

/** Whether a place lies inside a closed line: the even-odd rule. */
export function inside(x: number, y: number, line: readonly (readonly [number, number])[]): boolean {
  let odd = false;
  line.forEach(([ax, ay], index) => {
    const [bx, by] = line[(index + 1) % line.length]!;
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) odd = !odd;
  });
  return odd;
}

/** Draws one picture. */
export function paint(canvas: HTMLCanvasElement, scene: Scene, view: View): void {
  const ctx = canvas.getContext("2d");
  if (!ctx) return;
  ctx.setTransform(view.ratio, 0, 0, view.ratio, 0, 0);
  ctx.clearRect(0, 0, view.width, view.height);
  const [text, line, surface, accent] = ["text", "line", "surface", "accent"].map(colour) as [
    string,
    string,
    string,
    string,
  ];
  drawAxes(ctx, view, line);
  drawTrail(ctx, scene.trail, view, text);
  const order = scene.points.map((point, index) => [index, ...project(point, view)] as const);
  if ((scene.points[0]?.length ?? 2) > 2) order.sort((a, b) => a[3] - b[3]);
  for (const [index, x, y] of order) {
    const marked = index === scene.picked || index === scene.hovered;
    const group = scene.colours[index] ?? 0;
    trace(ctx, scene.marks[group] ?? [], x, y, marked ? RADIUS + 3 : RADIUS);
    ctx.fillStyle = scene.palette[group] ?? text;
    ctx.globalAlpha = 0.85;
    ctx.fill();
    ctx.globalAlpha = 1;
    ctx.lineWidth = marked || scene.lassoed.has(index) ? 2 : 1;
    ctx.strokeStyle = marked || scene.lassoed.has(index) ? text : surface;
    ctx.stroke();
  }
  for (const arrow of scene.arrows) drawArrow(ctx, arrow, view, accent, surface);
  drawLasso(ctx, scene.lasso, accent);
}

/** Begins the outline of a mark. */
function trace(ctx: CanvasRenderingContext2D, corners: readonly Corner[], x: number, y: number, radius: number): void {
  ctx.beginPath();
  if (corners.length === 0) ctx.arc(x, y, radius, 0, 2 * Math.PI);
  for (const [right, down] of corners) ctx.lineTo(x + right * radius, y + down * radius);
  ctx.closePath();
}

function drawAxes(ctx: CanvasRenderingContext2D, view: View, line: string): void {
  ctx.strokeStyle = line;
  ctx.lineWidth = 1;
  ctx.beginPath();
  ctx.moveTo(MARGIN, view.height / 2);
  ctx.lineTo(view.width - MARGIN, view.height / 2);
  ctx.moveTo(view.width / 2, MARGIN);
  ctx.lineTo(view.width / 2, view.height - MARGIN);
  ctx.stroke();
}

function drawTrail(ctx: CanvasRenderingContext2D, trail: Scene["trail"], view: View, stroke: string): void {
  if (trail.length < 2) return;
  ctx.strokeStyle = stroke;
  ctx.globalAlpha = 0.55;
  ctx.lineWidth = 1.5;
  ctx.beginPath();
  trail.forEach((point, index) => {
    const [x, y] = project(point, view);
    if (index === 0) ctx.moveTo(x, y);
    else ctx.lineTo(x, y);
  });
  ctx.stroke();
  ctx.globalAlpha = 1;
}

function drawArrow(
  ctx: CanvasRenderingContext2D,
  arrow: Scene["arrows"][number],
  view: View,
  fill: string,
  halo: string,
): void {
  const [ax, ay] = project(arrow.start, view);
  const [bx, by] = project(arrow.end, view);
  const angle = Math.atan2(by - ay, bx - ax);
  ctx.strokeStyle = fill;
  ctx.fillStyle = fill;
  ctx.lineWidth = 3;
  ctx.beginPath();
  ctx.moveTo(ax, ay);
  ctx.lineTo(bx, by);
  ctx.stroke();
  ctx.beginPath();
  ctx.moveTo(bx + 8 * Math.cos(angle), by + 8 * Math.sin(angle));
  for (const side of [2.5, -2.5]) ctx.lineTo(bx + 8 * Math.cos(angle + side), by + 8 * Math.sin(angle + side));
  ctx.fill();
  ctx.font = "600 13px system-ui, sans-serif";
  ctx.lineWidth = 4;
  ctx.strokeStyle = halo;
  const [tx, ty] = [Math.min(bx + 10, view.width - 90), Math.max(by - 10, 14)];
  ctx.strokeText(arrow.label, tx, ty);
  ctx.fillText(arrow.label, tx, ty);
}

function drawLasso(ctx: CanvasRenderingContext2D, line: Scene["lasso"], stroke: string): void {
  if (line.length < 2) return;
  ctx.strokeStyle = stroke;
  ctx.lineWidth = 1.5;
  ctx.setLineDash([4, 3]);
  ctx.beginPath();
  for (const [x, y] of line) ctx.lineTo(x, y); // the first one only sets the start
  ctx.stroke();
  ctx.setLineDash([]);
}
