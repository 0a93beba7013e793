import { change, draft } from "./draft";

/** Goes on with the conversation after an answer: the prompt and the answer become earlier turns. */
export function continueFrom(answer: string): void {
  const { prompt, history, raw } = draft.value;
  if (raw) {
    change({ prompt: prompt + answer });
    return;
  }
  const turns = [
    { role: "user" as const, content: prompt },
    { role: "assistant" as const, content: answer },
  ];
  change({ history: [...history, ...turns], prompt: "" });
}
