import { signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { api, apiKey, dataOf, type LatentSpace } from "../api/client";
import { gallery, type SavedItem, textOf } from "../compare/gallery";
import { addressLink } from "../core/places";
import { Query } from "../core/query";
import { conceptDetails, library } from "../core/server";
import { given, keep, kept } from "../core/state";
import { DocLink } from "../frame/dialogs";
import { colour, coloursChanged, inFrames, reducedMotion } from "../frame/theme";
import { alongVector, between } from "../maths/geometry";
import { plain as figure, meanOf } from "../maths/scales";
import { Button, ErrorNote, focusNext, useSize } from "../ui/parts";
import { scenes as SCENES } from "../words.json"; // and how each stands: from which layer to which, and what is drawn beside the dots
import { fitted, paint, type Scene } from "./draw";
import { alignedMaps, conceptTexts, mapsOf, scoresOf } from "./store";

const SEEN = "steering-server.story";
/** The concepts of which the story may tell: the pairs of others are conversations. */
const TOLD = ["sentiment", "formality"];
/** Whether the story gives way to the tool: once it was seen or skipped, and where a link names a picture. */
export const storyOver = signal(kept("localStorage", SEEN) === "seen");
export const storyShown = () => !storyOver.value && addressLink.value === null;

function leave(): void {
  keep("localStorage", SEEN, "seen");
  storyOver.value = true;
  focusNext(".what");
}

type Material = NonNullable<typeof material.data.value>;

/** Reads the texts of a concept, and after them two saved answers, at every layer. */
const material = new Query(async (signal) => {
  const items = (gallery.data.value ?? (await gallery.load()))?.items ?? [];
  const saved = items.find(({ vector }) => TOLD.includes(vector));
  const concept = saved?.vector ?? TOLD[0]!;
  const query = conceptDetails.of(concept);
  const detail = query.data.value ?? (await query.load());
  if (detail === null) throw query.error.value;
  const { texts, labels, groups } = conceptTexts(detail);
  const [plain, steered, against] = saved ? answersOf(saved) : ["", "", false];
  const shared = { method: "pca", dims: 2, position: "mean", embeddings: true };
  const body = { ...shared, texts: [...texts, ...(saved ? [plain, steered] : [])] };
  const apart = { ...shared, texts, labels: labels ?? [], ...given({ groups }) };
  const known = (library.data.value ?? (await library.load()))?.data.some(({ name }) => name === concept) ?? false;
  const map = (one: object) => dataOf<LatentSpace>(api.POST("/v1/latent-space", { body: one as never, signal }));
  const [all, judged] = await Promise.all([map(body), map(apart)]);
  const maps = mapsOf(all);
  const layers = alignedMaps(maps);
  const scores = known ? (await scoresOf(body.texts, concept, signal)).byLayer : new Map();
  const lists = maps.map(({ layer }) => scores.get(layer ?? -1)?.map((one: number | null) => (one ?? 0) * POLES_APART));
  const figures = mapsOf(judged).map(({ separability }) => separability?.auroc ?? 0);
  const reached = Math.max(...figures);
  return {
    layers: alongVector(layers, lists).map((layer, index) => (lists[index] ? layer : layers[index]!)), // the input has no score
    best: figures.indexOf(reached), // the picture at which the labels stand apart best
    input: figures[0] ?? 0, // how well the words alone tell the two sides apart, as an AUROC over topics that were held out
    reached, // the same at the best layer
    along: known, // whether the dots lie along the vector of the concept, which the library has
    positive: (labels ?? []).map((label) => label === detail.positive), // the last two texts are the plain and the steered answer
    poles: { positive: detail.positive, negative: detail.negative },
    plain,
    steered,
    against, // whether the steered answer goes toward the negative side
    prompt: saved?.prompt ?? "",
  };
});

/** How far the poles lie from each other in the picture, in median distances of the dots at the input. */
const POLES_APART = 2;

/** The plain answer, the one at the end of the dial that moves it most, and whether that is the negative end. */
function answersOf({ stops }: SavedItem): [string, string, boolean] {
  const zero = stops.find(({ strength }) => strength === 0);
  const moved = ({ shift }: SavedItem["stops"][number]) => Math.abs(shift[0]);
  const furthest = stops.reduce((best, one) => (moved(one) > moved(best) ? one : best));
  return [zero ? textOf(zero) : "", textOf(furthest), furthest.strength < 0];
}

const SECONDS = 5;

/** An AUROC up to which the words alone hardly tell the sides apart; 0.5 is chance. */
const MIXED = 0.6;

function captionOf(index: number, { poles, positive, input, reached, along, against }: Material): string {
  const apart =
    input <= MIXED
      ? "they are mixed"
      : `they tell the two apart with an AUROC of ${figure(input)}, where 0.5 is chance`;
  return [
    `Each of the ${positive.length} dots is a sentence: orange is “${poles.positive}”, blue is “${poles.negative}”. Before the model has read them only their words count, and ${apart}.`,
    `Every layer of the model moves every dot. The picture goes to the layer at which the two colours stand apart best: an AUROC of ${figure(reached)} on topics that were held out.${along ? " From left to right is the score along the vector." : ""}`,
    "The arrow leads from the middle of the blue dots to the middle of the orange ones. That direction is the concept vector.",
    `Steering adds the arrow${against ? ", here turned around," : ""} while the model writes. Two finished answers to the same prompt are read again, without steering: each line is the way of one through the layers, the coloured one that of the steered answer.`,
  ][index]!;
}

/** The story of latent space in a few scenes, whose pictures move by themselves; then the tool. */
export function Story() {
  const [chosen, setAt] = useState(0);
  const [share, setShare] = useState(0);
  const found = material.data.value;
  const scenes = found?.plain === "" ? SCENES.filter(({ answers }) => !answers) : SCENES;
  const at = Math.min(chosen, scenes.length - 1);
  useEffect(() => {
    if (material.data.peek() === null) void material.ask();
    return () => material.stop();
  }, [apiKey.value]);
  useLayoutEffect(() => {
    if (found === null) return;
    if (reducedMotion()) return setShare(1);
    setShare(0);
    return inFrames((seconds) => {
      setShare(Math.min(seconds / SECONDS, 1));
      return seconds >= SECONDS;
    });
  }, [at, found]);
  const reading = found === null && material.error.value === null; // also before it is asked for
  const last = at === scenes.length - 1;
  const back = () => {
    setAt(at - 1);
    if (at === 1) focusNext(".story h2"); // the first scene has no way back
  };
  return (
    <section class="panel stack story" aria-label="Story of latent space" aria-busy={reading}>
      <div class="row between">
        <h2 tabIndex={-1}>
          {at + 1}. {SCENES[at]!.title}
        </h2>
        <Button label="Skip to the tool" kind="quiet" onClick={leave} />
      </div>
      <ErrorNote error={material.error.value} />
      {found ? (
        <Picture found={found} at={at} share={share} />
      ) : (
        <p class="muted scatter empty">{reading && "Reading the sentences"}</p>
      )}
      <p class="caption" aria-live="polite">
        {found && captionOf(at, found)}
      </p>
      {found && SCENES[at]!.answers && (
        <div class="answers">
          <figure>
            <figcaption class="small">Plain answer to “{found.prompt}”</figcaption>
            <q dir="auto">{found.plain}</q>
          </figure>
          <figure class="steered">
            <figcaption class="small">
              Steered toward “{found.against ? found.poles.negative : found.poles.positive}”
            </figcaption>
            <q dir="auto">{found.steered}</q>
          </figure>
        </div>
      )}
      <div class="row">
        {at > 0 && <Button label="Back" onClick={back} />}
        <Button label={last ? "Open the tool" : "Next"} kind="primary" onClick={last ? leave : () => setAt(at + 1)} />
        <DocLink page="latent_space" />
      </div>
    </section>
  );
}

function Picture({ found, at, share }: { found: Material; at: number; share: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const [{ width, height }, setSize] = useState({ width: 0, height: 0 });
  useSize(
    () => canvas.current,
    (width, height) => setSize({ width, height }),
  );
  useEffect(() => {
    const view = fitted(canvas.current!, { width, height, ratio: 1, yaw: 0, pitch: 0 }, width, height);
    paint(canvas.current!, sceneAt(found, at, share), view, 6);
  }, [found, at, share, width, height, coloursChanged.value]);
  return (
    <div class="scatter">
      <canvas ref={canvas} role="img" aria-label={captionOf(at, found)} />
    </div>
  );
}

/** What a scene draws at a share of its time. */
export function sceneAt(found: Material, at: number, share: number): Scene {
  const { from, to, arrow, answers } = SCENES[at]!;
  const { layers, best, positive } = found;
  const reached = (from + (to - from) * share) * best;
  const [index, part] = [Math.floor(reached), reached - Math.floor(reached)];
  const here = layers[index]!.points;
  const all = part === 0 ? here : between(here, layers[index + 1]!.points, part);
  const points = all.slice(0, positive.length);
  const side = (wanted: boolean) => points.filter((_, one) => positive[one] === wanted);
  const label = found.poles.positive;
  const ways = [0, 1].map((answer) => ({
    points: [...layers.slice(0, index + 1).map((layer) => layer.points[positive.length + answer]!), all[positive.length + answer]!], // biome-ignore format: one line
    colour: colour(answer === 0 ? "text" : "accent"),
  }));
  return {
    points,
    colours: positive.map((one) => (one ? 0 : 1)),
    palette: [colour("above"), colour("below")],
    marks: [],
    arrows: arrow ? [{ start: middleOf(side(false)), end: middleOf(side(true)), label }] : [],
    trail: [],
    ways: answers && all.length > positive.length ? ways : [],
    picked: null,
    hovered: null,
    lassoed: new Set(),
    lasso: [],
  };
}

const middleOf = (points: readonly (readonly number[])[]): number[] =>
  [0, 1].map((axis) => meanOf(points.map((point) => point[axis])) ?? 0);
