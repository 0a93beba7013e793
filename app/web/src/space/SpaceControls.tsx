import { ShareLink } from "../frame/ShareLink";
import { capabilities } from "../frame/server";
import { vectors } from "../frame/vectors";
import { FileButton } from "../ui/FileButton";
import { Segments } from "../ui/Segments";
import {
  ALONG_VECTOR,
  busy,
  type ColourBy,
  chooseVector,
  colourBy,
  dims,
  draw,
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

const METHOD_WORDS: Readonly<Record<string, string>> = { pca: "PCA", tsne: "t-SNE", umap: "UMAP" };

/** What is drawn: the texts, the method, the dimensions, the vector and the colours. */
export function SpaceControls() {
  return (
    <section class="panel stack" aria-label="What is drawn">
      <div class="row controls">
        <SetField />
        <Segments
          label="Method"
          value={method.value}
          options={[
            ...(capabilities.value?.projections ?? ["pca"]).map((name) => [name, METHOD_WORDS[name] ?? name] as const),
            ...(vector.value ? ([[ALONG_VECTOR, "Along the vector"]] as const) : []),
          ]}
          onChange={(name) => redraw(() => (method.value = name))}
        />
        <Segments
          label="Dimensions"
          value={method.value === ALONG_VECTOR ? 2 : dims.value}
          options={[
            [2, "2-D"],
            [3, "3-D"],
          ]}
          onChange={(count) => redraw(() => chooseDimensions(count))}
        />
        <VectorField />
        <ColourField />
        <PositionField />
      </div>
      <div class="row">
        <ShareLink view="space" state={spaceState} />
        <span role="status" class="small">
          {busy.value ? "Drawing" : scoresBusy.value > 0 && "Reading the scores"}
        </span>
        {busy.value && (
          <button type="button" onClick={stopDrawing}>
            Stop
          </button>
        )}
      </div>
      {setName.value === "own" && <OwnTexts />}
    </section>
  );
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

function SetField() {
  const sets = capabilities.value?.concepts ?? [];
  const known = setName.value === "own" || sets.includes(setName.value);
  return (
    <label class="field">
      <span>Texts</span>
      <select value={setName.value} onChange={(event) => redraw(() => (setName.value = event.currentTarget.value))}>
        {(known ? sets : [setName.value, ...sets]).map((name) => (
          <option key={name} value={name}>
            {name} (ready set)
          </option>
        ))}
        <option value="own">my texts</option>
      </select>
    </label>
  );
}

function VectorField() {
  return (
    <label class="field">
      <span>Vector</span>
      <select
        value={vector.value ?? ""}
        onChange={(event) => redraw(() => chooseVector(event.currentTarget.value || null))}
      >
        <option value="">none</option>
        {(vectors.value ?? []).map((one) => (
          <option key={one.name}>{one.name}</option>
        ))}
      </select>
    </label>
  );
}

function ColourField() {
  const choose = (by: ColourBy) => {
    colourBy.value = by;
    error.value = null; // the scores may not have been read before
    if (by === "score") void loadScores().catch((failure) => (error.value = failure));
  };
  return (
    <label class="field">
      <span>Colour</span>
      <select value={colourBy.value} onChange={(event) => choose(event.currentTarget.value as ColourBy)}>
        <option value="label">by label</option>
        <option value="score" disabled={vector.value === null}>
          by score of the vector
        </option>
        <option value="none">none</option>
      </select>
    </label>
  );
}

function PositionField() {
  return (
    <label class="field">
      <span>Read at</span>
      <select
        value={position.value}
        onChange={(event) => redraw(() => (position.value = event.currentTarget.value === "last" ? "last" : "mean"))}
      >
        <option value="mean">all words, averaged</option>
        <option value="last">the last word</option>
      </select>
    </label>
  );
}

async function takeTexts(file: File): Promise<void> {
  ownText.value = await file.text();
}

function OwnTexts() {
  return (
    <div class="stack">
      <label class="field">
        <span>One text a line; or two columns from a spreadsheet, text and label</span>
        <textarea
          rows={6}
          value={ownText.value}
          placeholder={"The soup was wonderful\tfood\nThe train was late again\ttravel"}
          onInput={(event) => {
            ownText.value = event.currentTarget.value;
          }}
        />
      </label>
      <div class="row">
        <button type="button" class="primary" disabled={ownText.value.trim() === ""} onClick={() => void draw()}>
          Draw
        </button>
        <FileButton accept=".csv,.tsv,.txt" take={takeTexts} onProblem={(problem) => (error.value = problem)}>
          Open a CSV file
        </FileButton>
      </div>
    </div>
  );
}
