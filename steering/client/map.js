// Draws DATA as a scatter plot with a slider that moves continuously through the layers.
const SIZE = 560;
const RANGE = 2.6; // Points are scaled to unit root mean square; almost all lie within this distance of the centre.
const SVG = "http://www.w3.org/2000/svg";

function element(parent, name, attributes = {}, namespace = null) {
  const node = namespace ? document.createElementNS(namespace, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  parent.append(node);
  return node;
}

function between(position, from, to) {
  return from + (to - from) * position;
}

const root = document.getElementById("map");
const plot = element(root, "svg", { viewBox: `0 0 ${SIZE} ${SIZE}`, width: SIZE, style: "max-width:100%" }, SVG);
const circles = DATA.texts.map((text, index) => {
  const colour = DATA.colours[DATA.labels[index] % DATA.colours.length];
  const circle = element(plot, "circle", { r: 5, fill: colour, "fill-opacity": 0.75 }, SVG);
  element(circle, "title", {}, SVG).textContent = text;
  circle.addEventListener("pointerenter", () => (shown.textContent = text));
  return circle;
});

const controls = element(root, "p");
const play = element(controls, "button", { type: "button" });
const slider = element(controls, "input", {
  type: "range", min: 0, max: DATA.layers.length - 1, step: 0.01, value: 0, "aria-label": "layer",
  style: "width:20rem;max-width:60%;vertical-align:middle",
});
const caption = element(controls, "span");
const shown = element(root, "p", { class: "text", "aria-live": "polite" });
shown.textContent = "Move the pointer over a point to read its text.";
const legend = element(root, "p", { class: "muted" });
DATA.names.forEach((name, index) => {
  element(legend, "span", { style: `color:${DATA.colours[index % DATA.colours.length]}` }).textContent = "■ ";
  element(legend, "span").textContent = `${name}   `;
});

const CURVE = { width: SIZE, height: 90 };
const measured = DATA.layers.some((layer) => layer.auroc !== null);
const curve = measured && element(root, "svg", { viewBox: `0 0 ${CURVE.width} ${CURVE.height}`, width: SIZE, style: "max-width:100%" }, SVG);
let playhead = null;
if (curve) {
  const x = (index) => (index / Math.max(DATA.layers.length - 1, 1)) * CURVE.width;
  const y = (auroc) => CURVE.height - 18 - (Math.max(auroc, 0.5) - 0.5) * 2 * (CURVE.height - 28);
  const points = DATA.layers.flatMap((layer, index) => (layer.auroc === null ? [] : [`${x(index)},${y(layer.auroc)}`]));
  element(curve, "polyline", { points: points.join(" "), fill: "none", stroke: DATA.colours[0], "stroke-width": 2 }, SVG);
  const note = element(curve, "text", { x: 4, y: CURVE.height - 4, "font-size": 11, fill: "currentColor" }, SVG);
  note.textContent = "separability of the labels by layer: AUROC from 0.5 (bottom) to 1 (top)";
  playhead = element(curve, "line", { y1: 0, y2: CURVE.height - 18, stroke: "currentColor", opacity: 0.6 }, SVG);
}

function draw() {
  const value = Number(slider.value);
  const low = Math.floor(value);
  const high = Math.min(low + 1, DATA.layers.length - 1);
  const position = value - low;
  circles.forEach((circle, index) => {
    const from = DATA.layers[low].points[index];
    const to = DATA.layers[high].points[index];
    circle.setAttribute("cx", SIZE / 2 + (between(position, from[0], to[0]) / RANGE) * (SIZE / 2));
    circle.setAttribute("cy", SIZE / 2 - (between(position, from[1], to[1]) / RANGE) * (SIZE / 2));
  });
  const nearest = DATA.layers[Math.round(value)];
  const auroc = nearest.auroc === null ? "" : `, AUROC ${nearest.auroc.toFixed(2)}`;
  caption.textContent = ` ${nearest.name}${auroc}`;
  if (playhead) {
    const x = (value / Math.max(DATA.layers.length - 1, 1)) * CURVE.width;
    playhead.setAttribute("x1", x);
    playhead.setAttribute("x2", x);
  }
}

let previous = null;
function step(now) {
  if (play.textContent !== "Pause") return;
  slider.value = Number(slider.value) + (previous === null ? 0 : (now - previous) / 700);
  previous = now;
  draw();
  if (Number(slider.value) >= DATA.layers.length - 1) play.textContent = "Play";
  else requestAnimationFrame(step);
}

play.textContent = "Play";
play.addEventListener("click", () => {
  const start = play.textContent === "Play";
  play.textContent = start ? "Pause" : "Play";
  if (!start) return;
  if (Number(slider.value) >= DATA.layers.length - 1) slider.value = 0;
  previous = null;
  requestAnimationFrame(step);
});
slider.addEventListener("input", draw);
draw();
