import { useEffect, useState } from "preact/hooks";
import { apiKey } from "../api/key";
import { concepts, loadConcepts } from "../compare/store";
import { capabilities, layerCount } from "../frame/server";
import { vectors } from "../frame/vectors";
import { FileButton } from "../ui/FileButton";
import { ChoiceField, OptionalNumber } from "../ui/fields";
import { ErrorNote, Note } from "../ui/Note";
import { NumberField } from "../ui/NumberField";
import { Segments } from "../ui/Segments";
import { PairTable } from "./PairTable";
import { fields, file, type Origin, OWN_PAIRS, setFields, takeFile } from "./transfer";
import { parseVectorFile } from "./vectorFile";
import { loadChoices } from "./work";

/** A vector of the operator's second model, carried over to the loaded one. */
export function TransferSource() {
  useEffect(() => void loadChoices(loadConcepts), [apiKey.value]);
  const { origin, concept } = fields.value;
  return (
    <div class="stack">
      {capabilities.value?.second_model === false && <NoSecondModel />}
      <Segments<Origin>
        label="The direction"
        value={origin}
        options={[
          ["learned", "Learned from pairs"],
          ["file", "From a vector file"],
        ]}
        onChange={(next) =>
          setFields({ origin: next, fromLayer: next === "file" ? (file.value?.begin ?? null) : null })
        }
      />
      {origin === "file" && <FileField />}
      <ChoiceField
        label={origin === "file" ? "Pairs of its concept, which measure the loss" : "Pairs of the concept"}
        value={concept}
        options={[
          ...concepts.value.map((one) => [one.name, `${one.name} (starter concept)`] as const),
          [OWN_PAIRS, "my pairs"],
        ]}
        onChange={(name) => setFields({ concept: name })}
      />
      {concept === OWN_PAIRS && <PairTable />}
      <EffectFields />
      <Options />
    </div>
  );
}

function NoSecondModel() {
  return (
    <Note kind="notice">
      <span>
        This server has no second model to carry a vector over from. The operator names one, as a folder or a GGUF file,
        with the setting <code>STEERING_SCORER_MODEL</code>.
      </span>
    </Note>
  );
}

function FileField() {
  const [trouble, setTrouble] = useState<unknown>(null);
  const known = file.value;
  return (
    <div class="stack">
      <div class="row">
        <FileButton
          accept=".json,.safetensors"
          take={async (chosen) => takeFile(parseVectorFile(await chosen.arrayBuffer()))}
          onProblem={setTrouble}
        >
          Open a vector file
        </FileButton>
        <span class="small muted">
          {known
            ? `${known.name || "a vector"} of ${known.model || "an unnamed model"}`
            : "exported as JSON or safetensors"}
        </span>
      </div>
      <ErrorNote error={trouble} />
      {known && (
        <ChoiceField
          label="Its layer"
          value={String(fields.value.fromLayer ?? known.begin)}
          options={known.layers.map((layer) => [String(layer), `layer ${layer}`] as const)}
          onChange={(layer) => setFields({ fromLayer: Number(layer) })}
        />
      )}
    </div>
  );
}

/** Whether the steering effect is measured too, and against what. */
function EffectFields() {
  const { effect, native } = fields.value;
  return (
    <div class="stack">
      <label class="row">
        <input
          type="checkbox"
          checked={effect}
          onChange={(event) => setFields({ effect: event.currentTarget.checked })}
        />
        Measure how far it steers, too
      </label>
      {effect && (
        <ChoiceField
          label="Compared with"
          value={native}
          options={[
            ["", "the direction that the pairs give in this model"],
            ...(vectors.value ?? []).map((one) => [one.name, one.name] as const),
          ]}
          onChange={(name) => setFields({ native: name })}
        />
      )}
    </div>
  );
}

function Options() {
  return (
    <details class="more">
      <summary>Layers, texts that both models read, and what is held out</summary>
      <div class="stack">
        <Numbers />
        <label class="field">
          <span>Texts that both models read, one a line, 20 or more (empty: those of the server)</span>
          <textarea
            rows={3}
            value={fields.value.anchors}
            onInput={(event) => setFields({ anchors: event.currentTarget.value })}
          />
        </label>
      </div>
    </details>
  );
}

/** The layers, what is held out, and the seed that chooses it. */
function Numbers() {
  const { origin, fromLayer, toLayer, holdout, seed } = fields.value;
  return (
    <div class="fields">
      {origin === "learned" && (
        <OptionalNumber
          label="Layer of the second model"
          value={fromLayer}
          step={1}
          min={0}
          placeholder="the best"
          onChange={(layer) => setFields({ fromLayer: layer })}
        />
      )}
      <OptionalNumber
        label="Layer of this model"
        value={toLayer}
        step={1}
        min={0}
        max={Math.max(layerCount.value - 1, 0)}
        placeholder="the best"
        onChange={(layer) => setFields({ toLayer: layer })}
      />
      <NumberField
        label="Share held out"
        value={holdout}
        min={0.1}
        max={0.9}
        step={0.1}
        onChange={(share) => setFields({ holdout: share })}
      />
      <NumberField
        label="Seed"
        value={seed}
        min={0}
        max={2 ** 31}
        step={1}
        onChange={(next) => setFields({ seed: next })}
      />
    </div>
  );
}

/** What a transfer does, in the place where its result appears. */
export function AboutTransfer() {
  return (
    <section class="panel stack" aria-label="How it works">
      <h2>From one model to another</h2>
      <p>
        Two models have different activations, and a direction of one means nothing to the other. Both read the same
        texts; a linear map is fitted from the activations of the second model to those of this one, and carries the
        direction over.
      </p>
      <p>
        The loss is measured on pairs that neither the map nor the direction has seen: how well the carried direction
        reads them, next to one that was found in this model and to random ones.
      </p>
      <p class="muted">The second model is loaded for the transfer, and closed afterwards.</p>
    </section>
  );
}
