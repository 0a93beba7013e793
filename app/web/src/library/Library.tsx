import "../styles/library.css";
import { useEffect } from "preact/hooks";
import { isRefusal } from "../api/errors";
import { apiKey } from "../api/key";
import { open } from "../frame/places";
import { serverTrouble } from "../frame/server";
import { vectors, vectorsTrouble, vectorWarnings } from "../frame/vectors";
import { ErrorNote, Warnings } from "../ui/Note";
import { Keys } from "./admin/Keys";
import { Monitors } from "./admin/Monitors";
import { PolicyPanel } from "./admin/Policy";
import { loadAdmin } from "./admin/store";
import { Jobs } from "./Jobs";
import { LoadNote } from "./LoadNote";
import { DefaultSteering, Profiles } from "./Profiles";
import { ServerState } from "./ServerState";
import { Similarity } from "./Similarity";
import { found, loadLibrary, profiles, reloadVectors, search, selected } from "./store";
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
  return (
    <section class="stack" aria-label="Vectors">
      <div class="row between">
        <h2>Vectors</h2>
        <input
          type="search"
          aria-label="Search vectors"
          placeholder="Search by name, description or tag"
          value={search.value}
          onInput={(event) => {
            search.value = event.currentTarget.value;
          }}
        />
      </div>
      <LoadNote what="vectors" loaded={{ error: vectorsTrouble, load: reloadVectors }} />
      <Warnings of={vectorWarnings.value} />
      {all?.length === 0 && <EmptyLibrary />}
      {all && all.length > 0 && found.value.length === 0 && <p class="muted">No vector matches "{search.value}".</p>}
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
        <button type="button" class="primary" onClick={() => open("make")}>
          Make a vector
        </button>
        <button type="button" onClick={() => open("compare")}>
          Open Compare
        </button>
      </div>
    </div>
  );
}
