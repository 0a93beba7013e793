import { changedSpans } from "../maths/diff";
import type { Pane } from "./panes";

interface Props {
  base: Pane;
  steered: Pane;
  choice: number;
}

/** What a narrow screen shows first: the two answers under each other, with only what differs marked. */
export function DiffView({ base, steered, choice }: Props) {
  const plain = base.choices[choice]?.text ?? "";
  const moved = steered.choices[choice]?.text ?? "";
  return (
    <article class="panel pane difference-view" data-name="difference" aria-label="Difference">
      <h2>Normal</h2>
      <Marked base={moved} text={plain} kind="del" />
      <h2>Steered</h2>
      <Marked base={plain} text={moved} kind="ins" />
    </article>
  );
}

function Marked({ base, text, kind }: { base: string; text: string; kind: "del" | "ins" }) {
  if (text === "") return <p class="muted tokens">Nothing yet</p>;
  return (
    <p class="tokens" dir="auto">
      {changedSpans(base, text).map((span, index) =>
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
