import { isRefusal } from "../api/errors";
import { ErrorNote } from "../ui/Note";
import type { Loaded } from "./loaded";

interface Props {
  /** The name of what is read, for those who hear the buttons of the page one by one. */
  what: string;
  loaded: Pick<Loaded<unknown>, "error" | "load">;
}

/** Says why something could not be read, with a button that reads it again. A refused key is stated once for the place. */
export function LoadNote({ what, loaded }: Props) {
  const error = loaded.error.value;
  if (error === null || isRefusal(error)) return null;
  return (
    <div class="stack">
      <ErrorNote error={error} />
      <div class="row">
        <button type="button" onClick={() => void loaded.load()}>
          Read it again<span class="visually-hidden">: {what}</span>
        </button>
      </div>
    </div>
  );
}
