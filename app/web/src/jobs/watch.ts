import { api, dataOf, follow } from "../api/client";
import type { Job } from "../api/types";

/** A job that ended without its result. */
export class JobFailed extends Error {}

/** Follows a job until it ends and returns it. Throws JobFailed unless it succeeded; stopping cancels the job. */
export async function watchJob(job: Job, onProgress: (job: Job) => void, signal?: AbortSignal): Promise<Job> {
  const cancel = () => void api.DELETE("/v1/jobs/{job_id}", { params: { path: { job_id: job.id } } });
  signal?.addEventListener("abort", cancel, { once: true });
  let last = job;
  onProgress(last);
  try {
    await follow(
      `/v1/jobs/${encodeURIComponent(job.id)}/events`,
      (name, data) => {
        if (name !== "progress" && name !== "done") return;
        last = data as Job;
        onProgress(last);
      },
      signal,
    );
    if (last.status === "queued" || last.status === "running")
      last = await dataOf<Job>(api.GET("/v1/jobs/{job_id}", { params: { path: { job_id: job.id } } }));
  } finally {
    signal?.removeEventListener("abort", cancel);
  }
  if (last.status !== "succeeded") throw new JobFailed(last.error?.message ?? `The job was ${last.status}.`);
  return last;
}
