import { magnitude } from "../maths/scales";
import { differences, type Pane, type Shade, shadeValue } from "./panes";
import { answerReading } from "./readback";
import { comparison, fullReading, reader, shade } from "./store";

interface Props {
  pane: Pane;
  base: Pane | undefined;
  choice: number;
  selected: number | null;
  onSelect: (index: number) => void;
}

const FULL_SURPRISE = 6;
const FULL_KL = 2;

/** The words of an answer, each token shaded and clickable. */
export function TokenText({ pane, base, choice, selected, onSelect }: Props) {
  const tokens = pane.choices[choice]?.tokens ?? [];
  const kind = shade.value;
  const marks =
    kind === "difference" && base && base !== pane && !comparison.running.value ? differences(pane, base, choice) : [];
  const scores = answerReading(comparison.asked.value, reader.value, pane.name, choice)?.scores ?? [];
  const reached = selected !== null && selected < tokens.length ? selected : 0; // another sample may be shorter
  const pick = (event: Event) => {
    const index = (event.target as HTMLElement).dataset.index;
    if (index !== undefined) onSelect(Number(index));
  };
  return (
    <p class="tokens" dir="auto" onClick={pick} onKeyDown={(event) => moved(event, onSelect)}>
      {tokens.map((token, index) => {
        const look = lookOf(shadeValue(pane, choice, index, kind, scores), kind, marks[index] ?? false);
        return (
          <span
            key={index}
            data-index={index}
            role="button"
            tabIndex={index === reached ? 0 : -1}
            {...(token.text.trim() === "" ? { "aria-label": blankName(token.text) } : {})}
            aria-pressed={index === selected}
            class={look.name}
            {...(look.amount > 0 ? { style: { "--m": look.amount } } : {})}
          >
            {token.text}
          </span>
        );
      })}
    </p>
  );
}

/** What a screen reader says for a token without words, which is a button too. */
function blankName(text: string): string {
  if (text === "") return "part of a character";
  return text.includes("\n") ? "line break" : "space";
}

function lookOf(value: number | null, kind: Shade, changed: boolean): { name: string; amount: number } {
  if (kind === "difference") return { name: changed ? "token changed" : "token", amount: 0 };
  if (value === null) return { name: "token", amount: 0 };
  if (kind === "reading")
    return { name: value < 0 ? "token below" : "token above", amount: magnitude(value, fullReading.value) };
  return { name: "token amount", amount: magnitude(value, kind === "kl" ? FULL_KL : FULL_SURPRISE) };
}

/** Arrow keys go from token to token; Enter and space show one. */
function moved(event: KeyboardEvent, onSelect: (index: number) => void): void {
  const element = event.target as HTMLElement;
  const index = element.dataset.index;
  if (index === undefined || event.ctrlKey || event.metaKey) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    onSelect(Number(index));
  }
  const next = event.key === "ArrowRight" ? element.nextElementSibling : element.previousElementSibling;
  if (event.key === "ArrowRight" || event.key === "ArrowLeft") (next as HTMLElement | null)?.focus();
}
