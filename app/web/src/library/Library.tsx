import "../styles/library.css";
import { useEffect, useState } from "preact/hooks";
import { apiKey, isRefusal, type Profile } from "../api/client";
import { type Intervention, interventions, shortly } from "../compare/controls";
import { draft } from "../compare/draft";
import { addressState, open, rememberState } from "../core/places";
import { library, serverTrouble, vectors } from "../core/server";
import { of, SearchField, typed } from "../ui/fields";
import { Button, Each, ErrorNote, Form, List, LoadNote, Panel, Warnings } from "../ui/parts";
import { hints } from "../words.json";
import { Similarity } from "./Similarity";
import * as store from "./store";
import { VectorCard } from "./VectorCard";
import { VectorDetails } from "./VectorDetails";

/** Library: the vectors, what is like what, and what steers requests that name a profile or nothing. */
export default function Library() {
  const { profiles, selected } = store;
  const reachable = serverTrouble.value === null;
  useEffect(() => {
    if (reachable) void store.loadLibrary(); // else it is read as soon as the server answers again
  }, [apiKey.value, reachable]);
  // A card has an address: it opens with it, and the address follows the card that is open.
  useEffect(() => {
    if (addressState.value) selected.value = addressState.value;
  }, [addressState.value]);
  useEffect(() => rememberState("library", selected.value ?? ""), [selected.value]);
  const [all, found, text] = [vectors.value, store.found.value, store.search.value];
  return (
    <>
      {isRefusal(profiles.error.value) && <ErrorNote error={profiles.error.value} />}
      <section class="stack" aria-label="Vectors">
        <div class="row between">
          <h2>Vectors</h2>
          <SearchField label="Search vectors" placeholder="Search by name, description or tag" {...of(store.search)} />
        </div>
        <LoadNote what="vectors" query={library} />
        <Warnings of={library.data.value?.warnings} />
        {all?.length === 0 && (
          <div class="panel stack">
            <p>{hints.empty}</p>
            <div class="row">
              <Button label="Make a vector" kind="primary" onClick={() => open("make")} />
              <Button label="Open Play" onClick={() => open("compare")} />
            </div>
          </div>
        )}
        {all && all.length > 0 && found.length === 0 && <p class="muted">No vector matches "{text}".</p>}
        <div class="cards">
          <Each of={found} row={(vector) => <VectorCard key={vector.name} vector={vector} />} />
        </div>
      </section>
      <Similarity />
      <div class="columns">
        <Profiles />
        <DefaultSteering />
      </div>
      {selected.value && <VectorDetails key={selected.value} name={selected.value} />}
    </>
  );
}

/** Named sets of strengths; each is also a model name for OpenAI clients. */
export function Profiles() {
  const [name, setName] = useState("");
  const { profiles, profileActions } = store;
  const current = interventions(draft.value.controls, draft.value.overall);
  const row = (profile: Profile) => <ProfileRow key={profile.name} profile={profile} />;
  const save = async () => {
    if (await store.saveProfile(name, current)) setName((now) => (now === name ? "" : now)); // the next one may be typed already
  };
  const disabled = profileActions.busy.value || name === "" || current.length === 0;
  return (
    <Panel title="Profiles">
      <LoadNote what="profiles" query={profiles} />
      <Warnings of={profiles.data.value?.warnings} />
      <List of={profiles.data.value?.data} none={hints.noProfiles} row={row} />
      <Form kind="row" onSend={save}>
        <input type="text" aria-label="Name of the profile" placeholder="name" value={name} {...typed(setName)} />
        <Button label="Save what Play uses" submit disabled={disabled} />
      </Form>
      <ErrorNote error={profileActions.errorAt("form")} />
      {current.length === 0 && <p class="small muted">Play uses no vector at the moment.</p>}
    </Panel>
  );
}

function ProfileRow({ profile }: { profile: Profile }) {
  const { name } = profile;
  const words = (profile.interventions as unknown as Intervention[]).map(shortly).join(", ");
  const disabled = store.profileActions.busy.value;
  const makeDefault = () => store.setDefault(profile);
  const remove = () => store.deleteProfile(name);
  return (
    <li class="row between">
      <span>
        <strong>{name}</strong> <span class="small muted">{words}</span>
      </span>
      <span class="row">
        <Button label="Make default" hidden={`: ${name}`} disabled={disabled} onClick={makeDefault} />
        <Button label="Delete" hidden={` ${name}`} kind="quiet" disabled={disabled} onClick={remove} />
      </span>
      <ErrorNote error={store.profileActions.errorAt(`profile ${name}`)} />
    </li>
  );
}

export function DefaultSteering() {
  const { defaultSteering, profileActions } = store;
  const list = defaultSteering.data.value?.interventions;
  return (
    <Panel title="Default steering">
      <p class="small muted">{hints.defaultSteering}</p>
      <LoadNote what="default steering" query={defaultSteering} />
      <Warnings of={defaultSteering.data.value?.warnings} />
      {list && <p>{list.map(shortly).join(", ") || "None: such requests are unsteered."}</p>}
      {list && list.length > 0 && (
        <Button label="Clear" disabled={profileActions.busy.value} onClick={store.clearDefault} />
      )}
      <ErrorNote error={profileActions.errorAt("default")} />
    </Panel>
  );
}
