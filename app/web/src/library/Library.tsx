import { Button } from "../ui/Button";
import "../styles/library.css";
import { useEffect } from "preact/hooks";
import { isRefusal } from "../api/errors";
import { apiKey } from "../api/retry";
import { open } from "../core/places";
import { capabilities, load, serverTrouble } from "../core/server";
import { library, vectors } from "../core/vectors";
import { of, typed } from "../ui/fields";
import { ErrorNote, Warnings } from "../ui/Note";
import { Facts } from "../ui/Table";
import { Keys } from "./admin/Keys";
import { Monitors } from "./admin/Monitors";
import { PolicyPanel } from "./admin/Policy";
import { loadAdmin } from "./admin/store";
import { Jobs } from "./Jobs";
import { LoadNote } from "./LoadNote";
import { DefaultSteering, Profiles } from "./Profiles";
import { Similarity } from "./Similarity";
import { found, loadLibrary, profiles, search, selected } from "./store";
import { VectorCard } from "./VectorCard";
import { VectorDetails } from "./VectorDetails";

/** Library: the vectors, what uses them, and what the server does. */
export default function Library() {
  const reachable = serverTrouble.value === null;
  useEffect(() => {
    if (!reachable) return; // it is read as soon as the server answers again
    void loadLibrary();
    void loadAdmin();
  }, [apiKey.value, reachable]);
  const refused = profiles.error.value;
  return (
    <>
      {isRefusal(refused) && <ErrorNote error={refused} />}
      <Vectors />
      <Similarity />
      <div class="columns">
        <Profiles />
        <DefaultSteering />
      </div>
      <div class="columns">
        <PolicyPanel />
        <Keys />
      </div>
      <Monitors />
      <div class="columns">
        <Jobs />
        <ServerState />
      </div>
      {selected.value && <VectorDetails key={selected.value} name={selected.value} />}
    </>
  );
}

function Vectors() {
  const all = vectors.value;
  const { value, onChange } = of(search);
  return (
    <section class="stack" aria-label="Vectors">
      <div class="row between">
        <h2>Vectors</h2>
        <input
          type="search"
          aria-label="Search vectors"
          placeholder="Search by name, description or tag"
          value={value}
          {...typed(onChange)}
        />
      </div>
      <LoadNote what="vectors" query={library} again={() => library.load()} />
      <Warnings of={library.data.value?.warnings} />
      {all?.length === 0 && <EmptyLibrary />}
      {all && all.length > 0 && found.value.length === 0 && <p class="muted">No vector matches "{value}".</p>}
      <div class="cards">
        {found.value.map((vector) => (
          <VectorCard key={vector.name} vector={vector} />
        ))}
      </div>
    </section>
  );
}

function EmptyLibrary() {
  return (
    <div class="panel stack">
      <p>The library is empty. Make a vector from your own examples, or make the starter vectors in Compare.</p>
      <div class="row">
        <Button label="Make a vector" kind="primary" onClick={() => open("make")} />
        <Button label="Open Compare" onClick={() => open("compare")} />
      </div>
    </div>
  );
}

/** The model, its size, and what the engine does. */
export function ServerState() {
  const known = capabilities.value;
  if (!known) return null;
  const { model } = known;
  const facts: [string, string][] = [
    ["model", model.name],
    ["architecture", model.architecture],
    ["parameters", `${(model.parameters / 1e6).toFixed(0)} million`],
    ["layers × width", `${model.layers} × ${model.d_model}`],
    ["context", `${model.context_length} tokens`],
    ["device, precision", `${model.device}, ${model.dtype}`],
    ["engine", known.engine],
    ["weights", model.fingerprint.slice(0, 16)],
  ];
  const executor = (known as { executor?: unknown }).executor;
  if (typeof executor === "string") facts.push(["executor", executor]);
  if (load.value) facts.push(["requests", `${load.value.running} running, ${load.value.waiting} waiting`]);
  return (
    <section class="panel stack" aria-label="Server">
      <h2>Server</h2>
      <Facts of={facts} />
      <details class="more">
        <summary>Limits of one request</summary>
        <Facts
          of={Object.entries(known.limits).map(([name, value]) => [
            name.replaceAll("_", " "),
            value.toLocaleString("en"),
          ])}
        />
      </details>
    </section>
  );
}
