import { useEffect, useState } from "preact/hooks";
import { download } from "../api/client";
import { ApiError } from "../api/errors";
import type { Vector } from "../api/types";
import { addVector } from "../compare/store";
import { open } from "../frame/places";
import { vectorNamed } from "../frame/vectors";
import { QualityCard } from "../make/QualityCard";
import { TransferLoss } from "../make/TransferLoss";
import { plain } from "../maths/scales";
import { Button } from "../ui/Button";
import { Dialog } from "../ui/Dialog";
import { takeFocus } from "../ui/focus";
import { ErrorNote, Warnings } from "../ui/Note";
import { deleteVector, deletion, type Versions as Found, selected, usersOf, versionsOf } from "./store";
import { VersionComparison } from "./VersionComparison";

/** Everything about one vector, and what can be done with it. */
export function VectorDetails({ name }: { name: string }) {
  const vector = vectorNamed(name);
  const close = () => {
    selected.value = null;
  };
  if (!vector) return null;
  const use = () => {
    addVector(vector);
    close();
    open("compare");
  };
  return (
    <Dialog title={vector.id} wide onClose={close}>
      <p>{vector.description || "No description."}</p>
      <div class="row">
        <button type="button" class="primary" onClick={use}>
          Steer with it
        </button>
        <Exports vector={vector} />
      </div>
      <QualityCard vector={vector} />
      <TransferLoss vector={vector} />
      <Versions vector={vector} />
      <Provenance vector={vector} />
      <Deletion vector={vector} />
    </Dialog>
  );
}

function Exports({ vector }: { vector: Vector }) {
  const [error, setError] = useState<unknown>(null);
  const save = (format: string, extension: string) => {
    setError(null);
    void download(`/v1/vectors/${vector.name}/export?format=${format}`, `${vector.name}.${extension}`).catch(setError);
  };
  return (
    <>
      <button type="button" onClick={() => save("safetensors", "safetensors")}>
        Export safetensors
      </button>
      <button type="button" onClick={() => save("gguf", "gguf")}>
        Export GGUF
      </button>
      <button type="button" onClick={() => save("json", "json")}>
        Export JSON
      </button>
      <ErrorNote error={error} />
    </>
  );
}

function Versions({ vector }: { vector: Vector }) {
  const [found, setFound] = useState<Found | null>(null);
  const [error, setError] = useState<unknown>(null);
  useEffect(() => {
    let shown = true;
    setError(null);
    versionsOf(vector).then(
      (next) => shown && setFound(next),
      (failure) => shown && setError(failure),
    );
    return () => {
      shown = false;
    };
  }, [vector]);
  const versions = found?.data ?? [];
  return (
    <section class="stack" aria-label="Versions">
      <h3>Versions</h3>
      <ErrorNote error={error} />
      <Warnings of={found?.warnings} />
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard */}
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of versions">
        <table class="list">
          <thead>
            <tr>
              <th>Version</th>
              <th>Made</th>
              <th>Method</th>
              <th>AUROC</th>
              <th>SHA-256</th>
            </tr>
          </thead>
          <tbody>
            {versions.map((one) => (
              <tr key={one.version}>
                <td class="number">{one.version}</td>
                <td>{new Date(one.created_at).toLocaleString()}</td>
                <td>{one.method.replaceAll("_", " ")}</td>
                <td class="number">{plain(one.auroc)}</td>
                <td class="number">{one.sha256.slice(0, 12)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {versions.length > 1 && <VersionComparison name={vector.name} versions={versions} />}
    </section>
  );
}

function Provenance({ vector }: { vector: Vector }) {
  return (
    <details class="more">
      <summary>Where it comes from</summary>
      <dl class="provenance small">
        <div>
          <dt>model</dt>
          <dd>{vector.model}</dd>
        </div>
        {Object.entries(vector.provenance)
          .filter(([key]) => key !== "loss")
          .map(([key, value]) => (
            <div key={key}>
              <dt>{key.replaceAll("_", " ")}</dt>
              <dd>{typeof value === "string" ? value : JSON.stringify(value)}</dd>
            </div>
          ))}
      </dl>
    </details>
  );
}

/** The first step of a deletion. A refusal that came after this window was closed is shown, but does not let this button force it. */
function AskDeletion({ error, kept, onAsk }: { error: unknown; kept: boolean; onAsk: () => void }) {
  const ask = () => {
    deletion.dismiss();
    onAsk();
  };
  return (
    <>
      <ErrorNote error={error} />
      <div class="row">
        <button type="button" class="danger" onClick={ask} {...(kept ? { ref: takeFocus } : {})}>
          Delete
        </button>
      </div>
    </>
  );
}

function Deletion({ vector }: { vector: Vector }) {
  const [asked, setAsked] = useState<boolean | null>(null); // null: never yet
  const users = usersOf(vector);
  const error = deletion.errorAt(`vector ${vector.name}`);
  useEffect(() => () => deletion.dismiss(), []);
  if (!asked) return <AskDeletion error={error} kept={asked === false} onAsk={() => setAsked(true)} />;
  // The server knows users that this page does not, so only its refusal, which names them, offers to force it.
  const refused = error instanceof ApiError && error.code === "vector_in_use";
  return (
    <>
      <ErrorNote error={error} />
      <div class="note notice">
        <span>
          Delete all versions of {vector.name}?{users.length > 0 && ` It is used by ${users.join(", ")}.`} This cannot
          be undone.
        </span>
        <Button kind="danger" disabled={deletion.busy.value} onClick={() => void deleteVector(vector.name, refused)}>
          {refused ? `Delete ${vector.name} although it is used` : `Delete ${vector.name}`}
        </Button>
        <button
          type="button"
          ref={takeFocus}
          onClick={() => {
            setAsked(false);
            deletion.dismiss();
          }}
        >
          Keep it
        </button>
      </div>
    </>
  );
}
