import { signal } from "@preact/signals";
import { api, dataOf } from "../api/client";
import type { LogitLens } from "../api/types";
import { interventions } from "../compare/controls";
import { draft } from "../compare/draft";

export type LensMode = "plain" | "steered" | "difference";

export const prompt = signal("The capital of France is");
export const mode = signal<LensMode>("plain");
export const lens = signal<LogitLens | null>(null);
export const lensBusy = signal(false);
export const lensError = signal<unknown>(null);

/** Asks what the model would say if it stopped at each layer, plain and with the steering of Compare. */
export async function readLens(): Promise<void> {
  lensBusy.value = true;
  lensError.value = null;
  try {
    const steering = interventions(draft.value.controls, draft.value.overall);
    const body = { prompt: prompt.value, steering: steering as never, layers: "all" as const, top_k: 3 };
    lens.value = await dataOf<LogitLens>(api.POST("/v1/logit-lens", { body }));
    if (!lens.value.steering || steering.length === 0) mode.value = "plain";
  } catch (failure) {
    lensError.value = failure;
  } finally {
    lensBusy.value = false;
  }
}

export interface LensCell {
  text: string;
  probability: number;
  /** Whether steering changed the first prediction. */
  changed: boolean;
  title: string;
}

/** Returns one cell of the heat map. */
export function cellOf(answer: LogitLens, row: number, token: number, shown: LensMode): LensCell {
  const layer = answer.layers[row];
  const plain = layer?.plain[token] ?? [];
  const steered = layer?.steered?.[token] ?? plain;
  const list = shown === "plain" ? plain : steered;
  const first = list[0];
  return {
    text: first?.text ?? "",
    probability: Math.exp(first?.logprob ?? -99),
    changed: plain[0]?.id !== steered[0]?.id,
    title: list.map((one) => `${one.text} ${(100 * Math.exp(one.logprob ?? -99)).toFixed(1)} %`).join(", "),
  };
}
