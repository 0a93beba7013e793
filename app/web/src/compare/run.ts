import { batch, signal } from "@preact/signals";
import { stream } from "../api/client";
import { isAbort, type ServerError } from "../api/errors";
import type { CompareAnswer, TokenPiece } from "../api/types";
import { announce } from "../ui/announce";
import type { CompareBody } from "./draft";
import { type Pane, PaneCollector } from "./panes";

/** One comparison on the screen: what was asked, and its panes as they grow. */
export class ComparisonRun {
  readonly panes = signal<readonly Pane[]>([]);
  readonly running = signal(false);
  readonly error = signal<unknown>(null);
  readonly tokensPerSecond = signal<number | null>(null);
  /** What the panes show was asked with; each run has an object of its own. */
  readonly asked = signal<CompareBody | null>(null);
  private abort: AbortController | null = null;
  private scheduled = false;

  /** Runs a comparison; one that still runs is stopped first. What was shown stays until the first token. */
  async start(body: CompareBody): Promise<void> {
    this.stop();
    const abort = new AbortController();
    this.abort = abort;
    const collector = new PaneCollector(
      body.arms.map((arm) => arm.name),
      body.n,
    );
    this.running.value = true;
    announce("Writing the answers.");
    this.error.value = null;
    this.tokensPerSecond.value = null;
    const started = performance.now();
    const show = () => {
      this.scheduled = false;
      if (this.abort !== abort || collector.isEmpty) return;
      batch(() => {
        this.panes.value = collector.current();
        this.asked.value = body;
      });
      this.tokensPerSecond.value = collector.tokens / ((performance.now() - started) / 1000);
    };
    let ended = false;
    try {
      await stream(
        "/v1/compare",
        body,
        (name, data) => {
          ended ||= name === "done";
          this.receive(collector, name, data, show);
        },
        abort.signal,
      );
      if (!ended) throw new Error("The answers ended before they were complete. Was the server stopped?");
    } catch (error) {
      if (this.abort === abort && !isAbort(error)) this.error.value = error;
    } finally {
      if (this.abort === abort) {
        show();
        this.running.value = false;
        if (abort.signal.aborted) announce("Stopped.");
        else if (this.error.value === null) announce("The answers are complete.");
      }
    }
  }

  private receive(collector: PaneCollector, name: string, data: unknown, show: () => void): void {
    if (name === "token") collector.add(data as TokenPiece);
    else if (name === "error") collector.fail(data as ServerError & { arm: string });
    else if (name === "done") collector.finish(data as CompareAnswer);
    if (this.scheduled) return;
    // Once a frame: many tokens may arrive between two frames, and typing must stay smooth meanwhile.
    this.scheduled = true;
    requestAnimationFrame(show);
  }

  stop(): void {
    this.abort?.abort();
    this.running.value = false;
  }

  /** Stops the run and clears what is shown. What still arrives of it is not shown. */
  close(): void {
    this.stop();
    this.abort = null;
    batch(() => {
      this.panes.value = [];
      this.asked.value = null;
      this.error.value = null;
    });
  }
}
