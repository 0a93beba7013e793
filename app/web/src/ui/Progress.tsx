import { useEffect, useState } from "preact/hooks";
import { announce, Milestones, type Step } from "./announce";

interface Props extends Step {
  onStop?: () => void;
}

/** Shows how far a long piece of work has come, with a way to stop it. Screen readers read out milestones only. */
export function Progress({ message, done, total, onStop }: Props) {
  const [milestones] = useState(() => new Milestones());
  useEffect(() => {
    const spoken = milestones.next({ message, done, total }, performance.now());
    if (spoken !== null) announce(spoken);
  }, [message, done, total]);
  return (
    <div class="progress">
      <div class="row between">
        <span>{message || "Working"}</span>
        <span class="row">
          {total > 0 && (
            <span class="number small">
              {done} / {total}
            </span>
          )}
          {onStop && (
            <button type="button" onClick={onStop}>
              Stop
            </button>
          )}
        </span>
      </div>
      <progress aria-label={message || "Progress"} {...(total > 0 ? { value: done, max: total } : {})} />
    </div>
  );
}
