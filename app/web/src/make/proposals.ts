import { api, dataOf } from "../api/client";
import type { CompareAnswer } from "../api/types";
import { Query } from "../core/query";
import type { PairRow } from "../maths/text";
import { addPair, sides } from "./store";
import { name } from "./work";

/** What the model is asked on both sides: everyday questions on many topics, so that the pairs differ in one thing only. */
const QUESTIONS: readonly string[] = [
  "How was your day?",
  "What do you think of the new café?",
  "Describe your street.",
  "How do I make tea?",
  "Tell me about the sea.",
  "What should I do this weekend?",
  "Where is the library?",
  "Tell me about your work.",
  "Why do people travel?",
  "What is in your garden?",
  "How was the concert?",
  "What should I cook tonight?",
  "Describe a walk in winter.",
  "How does a bicycle work?",
  "What did your neighbour say?",
  "Tell me about a book.",
];

const MAX_TOKENS = 40;

/** Returns a name made of a description: its longest word. */
function nameFrom(description: string): string {
  const words = description.toLowerCase().match(/[a-z0-9]+/g) ?? [];
  return words.sort((a, b) => b.length - a.length)[0]?.slice(0, 40) ?? "";
}

/** Has the model answer each question in both ways. Each pair is in the table as soon as it is written, to be edited. */
export const proposing = new Query(async (signal) => {
  const { positive, negative } = sides.value;
  if (name.value === "") name.value = nameFrom(positive);
  const opposite = negative.trim() === "" ? `the opposite of: ${positive}` : negative;
  for (const [index, question] of QUESTIONS.entries()) {
    const arms = [
      { name: "positive", steering: [], system: `Answer in this manner: ${positive.trim()}.` },
      { name: "negative", steering: [], system: `Answer in this manner: ${opposite.trim()}.` },
    ];
    const messages = [{ role: "user" as const, content: question }];
    const body = { messages, arms, baseline: "negative", seed: index, max_tokens: MAX_TOKENS, temperature: 0.7 };
    addPair(pairOf(await dataOf<CompareAnswer>(api.POST("/v1/compare", { body, signal }))));
  }
  return true;
});

function pairOf({ arms }: CompareAnswer): PairRow {
  const text = (side: string) => arms.find(({ name }) => name === side)?.choices[0]?.text.trim() ?? "";
  return { positive: text("positive"), negative: text("negative") };
}
