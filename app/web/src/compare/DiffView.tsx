import { changedSpans } from "../maths/diff";
import { Note } from "../ui/Note";
import { emptyWords } from "./PaneView";
import type { Pane } from "./panes";

interface Props {
  base: Pane;
  steered: Pane;
  choice: number;
}

/** What a narrow screen shows first: the two answers under each other, with only what differs marked. */
export function DiffView({ base, steered, choice }: Props) {
  return (
    <article class="panel pane difference-view" data-name="difference" aria-label="Difference">
      <h2>Normal</h2>
      <Marked pane={base} other={steered} choice={choice} kind="del" />
      <h2>Steered</h2>
      <Marked pane={steered} other={base} choice={choice} kind="ins" />
    </article>
  );
}

interface MarkedProps {
  pane: Pane;
  other: Pane;
  choice: number;
  kind: "del" | "ins";
}

function Marked({ pane, other, choice, kind }: MarkedProps) {
  const shown = pane.choices[choice];
  const text = shown?.text ?? "";
  return (
    <>
      {text !== "" && (
        <p class="tokens" dir="auto">
          {changedSpans(other.choices[choice]?.text ?? "", text).map((span, index) =>
            span.kind === "equal" ? (
              <span key={index}>{span.text}</span>
            ) : (
              <mark key={index} class={kind}>
                {span.text}
              </mark>
            ),
          )}
        </p>
      )}
      {text === "" && !pane.error && <p class="muted tokens">{emptyWords(shown)}</p>}
      {pane.error && <Note kind="error">{pane.error}</Note>}
    </>
  );
}
