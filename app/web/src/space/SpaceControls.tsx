import { capabilities } from "../core/server";
import { vectors } from "../core/vectors";
import { ShareLink } from "../frame/ShareLink";
import { Button } from "../ui/Button";
import { ChoiceField, FileButton, named, of, Segments, TextArea } from "../ui/fields";
import {
  ALONG_VECTOR,
  busy,
  type ColourBy,
  chooseVector,
  colourBy,
  dims,
  draw,
  drawn,
  error,
  loadScores,
  method,
  ownText,
  position,
  scoresBusy,
  setName,
  spaceState,
  stopDrawing,
  vector,
} from "./store";

const METHOD_WORDS: Readonly<Record<string, string>> = { pca: "PCA", tsne: "t-SNE", umap: "UMAP", [ALONG_VECTOR]: "Along the vector" }; // biome-ignore format: one line

/** What a person calls a way of drawing. */
function methodWords(name: string): string {
  return METHOD_WORDS[name] ?? name;
}

const DIMENSIONS = [
  [2, "2-D"],
  [3, "3-D"],
] as const;
const COLOUR_WORDS = { label: "by label", score: "by score of the vector", none: "none" } as const;
const POSITIONS = { mean: "all words, averaged", last: "the last word" } as const;

/** What is drawn: the texts, the method, the dimensions, the vector and the colours. */
export function SpaceControls() {
  const methods = [...(capabilities.value?.projections ?? ["pca"]), ...(vector.value ? [ALONG_VECTOR] : [])];
  const sets = capabilities.value?.concepts ?? [];
  const known = setName.value === "own" || sets.includes(setName.value) ? sets : [setName.value, ...sets];
  const ready = known.map((name) => [name, `${name} (ready set)`] as const);
  const colour = (by: ColourBy) => {
    colourBy.value = by;
    if (by === "score") void loadScores();
  };
  return (
    <section class="panel stack" aria-label="What is drawn">
      <div class="row controls">
        <ChoiceField
          label="Texts"
          options={[...ready, ["own", "my texts"]]}
          value={setName.value}
          onChange={(name) => redraw(() => (setName.value = name))}
        />
        <Segments
          label="Method"
          options={methods.map((name) => [name, methodWords(name)] as const)}
          value={method.value}
          onChange={(name) => redraw(() => (method.value = name))}
        />
        <Segments<2 | 3>
          label="Dimensions"
          options={DIMENSIONS}
          value={method.value === ALONG_VECTOR ? 2 : dims.value}
          onChange={(count) => redraw(() => chooseDimensions(count))}
        />
        <ChoiceField
          label="Vector"
          options={[["", "none"], ...named(vectors.value)]}
          value={vector.value ?? ""}
          onChange={(name) => redraw(() => chooseVector(name || null))}
        />
        <ChoiceField
          label="Colour"
          options={COLOUR_WORDS}
          disabled={vector.value === null ? ["score"] : []}
          value={colourBy.value}
          onChange={colour}
        />
        <ChoiceField
          label="Read at"
          options={POSITIONS}
          value={position.value}
          onChange={(at) => redraw(() => (position.value = at))}
        />
      </div>
      <div class="row">
        <ShareLink view="space" state={spaceState} />
        <span role="status" class="small">
          {busy.value ? drawingWords() : scoresBusy.value && "Reading the scores"}
        </span>
        {busy.value && <Button label="Stop" onClick={stopDrawing} />}
      </div>
      {setName.value === "own" && <OwnTexts />}
    </section>
  );
}

/** Says what is being drawn, and what is seen until then. */
export function drawingWords(): string {
  const before = drawn.value && ` The picture is still ${methodWords(drawn.value.of.method)} of ${drawn.value.of.set}.`;
  return `Drawing ${methodWords(method.value)}, which may take minutes for many texts.${before ?? ""}`;
}

function redraw(change: () => void): void {
  change();
  if (setName.value !== "own" || ownText.value.trim() !== "") void draw();
}

/** A map along a vector has two dimensions, so three of them are those of another method. */
function chooseDimensions(count: 2 | 3): void {
  dims.value = count;
  if (count === 3 && method.value === ALONG_VECTOR) method.value = "pca";
}

function OwnTexts() {
  const take = async (file: File) => {
    ownText.value = await file.text();
  };
  return (
    <div class="stack">
      <TextArea
        label="One text a line; or two columns from a spreadsheet, text and label"
        rows={6}
        placeholder={"The soup was wonderful\tfood\nThe train was late again\ttravel"}
        {...of(ownText)}
      />
      <div class="row">
        <Button label="Draw" kind="primary" disabled={ownText.value.trim() === ""} onClick={() => void draw()} />
        <FileButton accept=".csv,.tsv,.txt" take={take} onProblem={(problem) => (error.value = problem)}>
          Open a CSV file
        </FileButton>
      </div>
    </div>
  );
}
