import "../styles/compare.css";
import { useLayoutEffect, useState } from "preact/hooks";
import { vectors } from "../core/vectors";
import { useActions } from "../frame/dialogs";
import { LinkProblem } from "../frame/ShareLink";
import { ErrorNote } from "../ui/Note";
import { CodeDialog } from "./CodeDialog";
import { followAddress } from "./draft";
import { FirstStart, Presets } from "./FirstStart";
import { Panes } from "./Panes";
import { PromptBox } from "./PromptBox";
import { SteeringPanel } from "./SteeringPanel";
import { Sweep } from "./Sweep";
import { comparison, reroll, run, runSweep, stopAll } from "./store";

/** Compare: one prompt, plain and steered next to each other. */
export default function Compare() {
  const [codeShown, setCodeShown] = useState(false);
  // Before the place is painted, so that the address does not undo what a person does as soon as it is seen.
  useLayoutEffect(followAddress, []);
  useLayoutEffect(() => useActions({ run, stop: stopAll, reroll }), []);
  return (
    <>
      <LinkProblem />
      {vectors.value?.length === 0 ? <FirstStart /> : <Presets />}
      <PromptBox onCode={() => setCodeShown(true)} />
      <div class="compare">
        <SteeringPanel onSweep={runSweep} />
        <div class="stack results">
          <ErrorNote error={comparison.error.value} />
          <Panes />
          <Sweep />
        </div>
      </div>
      {codeShown && <CodeDialog onClose={() => setCodeShown(false)} />}
    </>
  );
}
