import { api, dataOf, follow } from "../api/client";
import { pause, send } from "../api/retry";
import type { Job } from "../api/types";

const AGAIN_SECONDS = 1;

/** A job that ended without its result. */
export class JobFailed extends Error {}

/** The request that starts a job, sent with these options. */
export type StartJob = (options: { fetch: (request: Request) => Promise<Response> }) => Promise<Job>;

/**
 * Starts a job, follows it until it ends and returns it. Throws JobFailed unless it succeeded.
 *
 * Stopping works at any time: before the request is sent, while it waits to be repeated, while the server accepts it (the job is
 * cancelled as soon as its id is known) and while it runs. It throws AbortError, the server's error where the job could not be
 * cancelled, or returns the job where that had succeeded before.
 */
export async function runToEnd(start: StartJob, onProgress: (job: Job) => void, stop: AbortSignal): Promise<Job> {
  stop.throwIfAborted();
  const job = await start({ fetch: (request) => send(request, undefined, stop) });
  let last = job;
  try {
    stop.throwIfAborted();
    onProgress(job);
    last = await followed(job, onProgress, stop);
  } catch (failure) {
    if (!stop.aborted) throw failure;
    last = await cancelled(job);
    if (last.status !== "succeeded") stop.throwIfAborted();
  }
  if (last.status !== "succeeded") throw new JobFailed(last.error?.message ?? `The job was ${last.status}.`);
  return last;
}

/** Follows a job to its end. The server ends a stream that has grown old, while the job goes on: it is followed again then. */
async function followed(job: Job, onProgress: (job: Job) => void, stop: AbortSignal): Promise<Job> {
  const path = { job_id: job.id };
  for (let last = job; ; await pause(AGAIN_SECONDS, stop)) {
    await follow(
      `/v1/jobs/${encodeURIComponent(job.id)}/events`,
      (name, data) => {
        if (name !== "progress" && name !== "done") return;
        last = data as Job;
        if (!stop.aborted) onProgress(last);
      },
      stop,
    );
    if (isOpen(last)) last = await dataOf<Job>(api.GET("/v1/jobs/{job_id}", { params: { path }, signal: stop }));
    if (!isOpen(last)) return last;
  }
}

function isOpen({ status }: Job): boolean {
  return status === "queued" || status === "running";
}

function cancelled(job: Job): Promise<Job> {
  return dataOf<Job>(api.DELETE("/v1/jobs/{job_id}", { params: { path: { job_id: job.id } } }));
}
