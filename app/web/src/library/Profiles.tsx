import { useState } from "preact/hooks";
import { type Intervention, interventions } from "../compare/controls";
import { draft } from "../compare/draft";
import { attempt, defaultSteering, deleteProfile, profiles, saveProfile, setDefault } from "./store";

/** Named sets of strengths; each is also a model name for OpenAI clients. */
export function Profiles() {
  const [name, setName] = useState("");
  const current = interventions(draft.value.controls, draft.value.overall);
  const save = (event: Event) => {
    event.preventDefault();
    void attempt(() => saveProfile(name, current)).then(() => setName(""));
  };
  return (
    <section class="panel stack" aria-label="Profiles">
      <h2>Profiles</h2>
      {profiles.value.length === 0 && (
        <p class="muted">None yet. A profile is a set of vectors and strengths with a name.</p>
      )}
      <ul class="stack">
        {profiles.value.map((profile) => {
          const list = profile.interventions as unknown as Intervention[];
          return (
            <li key={profile.name} class="row between">
              <span>
                <strong>{profile.name}</strong> <span class="small muted">{list.map(shortly).join(", ")}</span>
              </span>
              <span class="row">
                <button type="button" onClick={() => void attempt(() => setDefault(list))}>
                  Make default
                </button>
                <button type="button" class="quiet" onClick={() => void attempt(() => deleteProfile(profile.name))}>
                  Delete<span class="visually-hidden"> {profile.name}</span>
                </button>
              </span>
            </li>
          );
        })}
      </ul>
      <form class="row" onSubmit={save}>
        <input
          type="text"
          aria-label="Name of the profile"
          placeholder="name"
          value={name}
          onInput={(event) => setName(event.currentTarget.value)}
        />
        <button type="submit" disabled={name === "" || current.length === 0}>
          Save what Compare uses
        </button>
      </form>
      {current.length === 0 && <p class="small muted">Compare uses no vector at the moment.</p>}
    </section>
  );
}

/** The steering of requests that name none. */
export function DefaultSteering() {
  const list = defaultSteering.value;
  return (
    <section class="panel stack" aria-label="Default steering">
      <h2>Default steering</h2>
      <p class="small muted">Applies to every request that names no steering of its own.</p>
      {list === null || list.length === 0 ? (
        <p>None: such requests are unsteered.</p>
      ) : (
        <>
          <p>{list.map(shortly).join(", ")}</p>
          <div class="row">
            <button type="button" onClick={() => void attempt(() => setDefault(null))}>
              Clear
            </button>
          </div>
        </>
      )}
    </section>
  );
}

/** Names an intervention in a few words. */
export function shortly(one: Intervention): string {
  const strength = typeof one.strength === "number" ? ` ${String(one.strength).replace("-", "−")}` : "";
  return one.operation === "add" || one.operation === undefined
    ? `${one.vector}${strength}`
    : `${one.operation} ${one.vector}`;
}
