import { vectorNamed } from "../frame/vectors";
import { change, changeControl, draft } from "./draft";
import type { Pane } from "./panes";
import { nothingMoved, type Reason, reasonsFor } from "./reasons";
import { reader, run } from "./store";

/** Appears when steering did not show: what may be the reason, each with a button that changes it. */
export function WhyNothing({ steered }: { steered: Pane }) {
  if (!nothingMoved(steered, reader.value)) return null;
  const { controls, overall } = draft.value;
  const reasons = reasonsFor(steered, controls, overall, vectorNamed);
  return (
    <section class="note notice why" aria-label="Why did nothing happen">
      <h3>Why did nothing happen?</h3>
      {reasons.length === 0 && (
        <p>The text did not move surely, though nothing is unusual. More samples, or another prompt, may tell.</p>
      )}
      <ul class="stack">
        {reasons.map((reason) => (
          <li key={reason.text} class="row">
            <span>{reason.text}</span>
            {reason.remedy && (
              <button type="button" onClick={() => apply(reason)}>
                {reason.label}
              </button>
            )}
          </li>
        ))}
      </ul>
    </section>
  );
}

function apply({ remedy, control }: Reason): void {
  if (remedy === "reset-overall") change({ overall: 1 });
  const found = draft.value.controls.find((one) => one.id === control);
  if (found && remedy === "stronger") changeControl(found.id, { strength: found.strength * 2 });
  if (found && remedy === "recommended-layers") changeControl(found.id, { layers: "recommended" });
  if (found && remedy === "no-condition") changeControl(found.id, { when: null });
  if (found && remedy === "switch-on") changeControl(found.id, { on: true });
  run();
}
