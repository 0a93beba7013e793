import { isRefusal } from "../api/errors";
import type { Query } from "../core/query";
import { ErrorNote } from "../ui/Note";

interface Props {
  /** The name of what is read, for those who hear the buttons of the page one by one. */
  what: string;
  query: Pick<Query<unknown>, "error">;
  again: () => unknown;
}

/** Says why something could not be read, with a button that reads it again. A refused key is stated once for the place. */
export function LoadNote({ what, query, again }: Props) {
  const error = query.error.value;
  if (error === null || isRefusal(error)) return null;
  return (
    <div class="stack">
      <ErrorNote error={error} />
      <div class="row">
        <button type="button" onClick={() => again()}>
          Read it again<span class="visually-hidden">: {what}</span>
        </button>
      </div>
    </div>
  );
}
