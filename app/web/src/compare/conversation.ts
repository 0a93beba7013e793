import { change, draft } from "./draft";
import { askedDraft, comparison } from "./store";

/**
 * Goes on with the conversation after an answer: the question that was asked and its answer become earlier turns. A prompt that was
 * typed since stays; after a text that is continued, it follows the text.
 */
export function continueFrom(answer: string): void {
  const asked = askedDraft.value;
  if (asked === null) return;
  const { prompt, history, raw } = asked;
  const typed = draft.value.prompt === prompt ? "" : draft.value.prompt;
  if (raw) {
    const answers = comparison.panes.value.flatMap((pane) => pane.choices.map((choice) => choice.text));
    const goneOn = answers.some((one) => typed === prompt + one); // with one of the answers, by an earlier click
    change({ raw, prompt: [prompt + answer, goneOn ? "" : typed].filter(Boolean).join("\n") });
    return;
  }
  const turns = [
    { role: "user" as const, content: prompt },
    { role: "assistant" as const, content: answer },
  ];
  change({ raw, history: [...history, ...turns], prompt: typed });
}
