import { useState } from "preact/hooks";
import type { Profile } from "../api/types";
import { type Intervention, interventions, shortly } from "../compare/controls";
import { draft } from "../compare/draft";
import { Button } from "../ui/Button";
import { ErrorNote, Warnings } from "../ui/Note";
import { LoadNote } from "./LoadNote";
import {
  clearDefault,
  defaultActions,
  defaultSteering,
  deleteProfile,
  profileActions,
  profiles,
  saveProfile,
  setDefault,
} from "./store";

/** Named sets of strengths; each is also a model name for OpenAI clients. */
export function Profiles() {
  const [name, setName] = useState("");
  const current = interventions(draft.value.controls, draft.value.overall);
  const save = async (event: Event) => {
    event.preventDefault();
    if (await saveProfile(name, current)) setName((now) => (now === name ? "" : now)); // the next one may be typed already
  };
  return (
    <section class="panel stack" aria-label="Profiles">
      <h2>Profiles</h2>
      <LoadNote what="profiles" query={profiles} again={() => profiles.load()} />
      <Warnings of={profiles.data.value?.warnings} />
      {profiles.data.value?.data.length === 0 && (
        <p class="muted">None yet. A profile is a set of vectors and strengths with a name.</p>
      )}
      <ul class="stack">
        {profiles.data.value?.data.map((profile) => (
          <ProfileRow key={profile.name} profile={profile} />
        ))}
      </ul>
      <form class="row" onSubmit={(event) => void save(event)}>
        <input
          type="text"
          aria-label="Name of the profile"
          placeholder="name"
          value={name}
          onInput={(event) => setName(event.currentTarget.value)}
        />
        <Button
          label="Save what Play uses"
          submit
          disabled={profileActions.busy.value || name === "" || current.length === 0}
        />
      </form>
      <ErrorNote error={profileActions.errorAt("form")} />
      {current.length === 0 && <p class="small muted">Play uses no vector at the moment.</p>}
    </section>
  );
}

function ProfileRow({ profile }: { profile: Profile }) {
  const list = profile.interventions as unknown as Intervention[];
  const busy = profileActions.busy.value;
  return (
    <li class="row between">
      <span>
        <strong>{profile.name}</strong> <span class="small muted">{list.map(shortly).join(", ")}</span>
      </span>
      <span class="row">
        <Button disabled={busy} onClick={() => void setDefault(profile)}>
          Make default<span class="visually-hidden">: {profile.name}</span>
        </Button>
        <Button kind="quiet" disabled={busy} onClick={() => void deleteProfile(profile.name)}>
          Delete<span class="visually-hidden"> {profile.name}</span>
        </Button>
      </span>
      <ErrorNote error={profileActions.errorAt(`profile ${profile.name}`)} />
    </li>
  );
}

/** The steering of requests that name none. */
export function DefaultSteering() {
  const list = defaultSteering.data.value?.interventions;
  return (
    <section class="panel stack" aria-label="Default steering">
      <h2>Default steering</h2>
      <p class="small muted">Applies to every request that names no steering of its own.</p>
      <LoadNote what="default steering" query={defaultSteering} again={() => defaultSteering.load()} />
      <Warnings of={defaultSteering.data.value?.warnings} />
      {list?.length === 0 && <p>None: such requests are unsteered.</p>}
      {list && list.length > 0 && (
        <>
          <p>{list.map(shortly).join(", ")}</p>
          <div class="row">
            <Button label="Clear" disabled={defaultActions.busy.value} onClick={() => void clearDefault()} />
          </div>
        </>
      )}
      <ErrorNote error={defaultActions.errorAt("default")} />
    </section>
  );
}
