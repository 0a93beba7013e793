import { changedSpans } from "../maths/diff";
import { emptyWords } from "./PaneView";
import type { Pane, PaneChoice } from "./panes";

interface Props {
  base: Pane;
  steered: Pane;
  choice: number;
}

/** What a narrow screen shows first: the two answers under each other, with only what differs marked. */
export function DiffView({ base, steered, choice }: Props) {
  const plain = base.choices[choice];
  const moved = steered.choices[choice];
  return (
    <article class="panel pane difference-view" data-name="difference" aria-label="Difference">
      <h2>Normal</h2>
      <Marked base={moved} shown={plain} kind="del" />
      <h2>Steered</h2>
      <Marked base={plain} shown={moved} kind="ins" />
    </article>
  );
}

interface MarkedProps {
  base: PaneChoice | undefined;
  shown: PaneChoice | undefined;
  kind: "del" | "ins";
}

function Marked({ base, shown, kind }: MarkedProps) {
  if (!shown?.text) return <p class="muted tokens">{emptyWords(shown)}</p>;
  return (
    <p class="tokens" dir="auto">
      {changedSpans(base?.text ?? "", shown.text).map((span, index) =>
        span.kind === "equal" ? (
          <span key={index}>{span.text}</span>
        ) : (
          <mark key={index} class={kind}>
            {span.text}
          </mark>
        ),
      )}
    </p>
  );
}
