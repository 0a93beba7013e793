import { useEffect } from "preact/hooks";
import type { JobSummary } from "../api/types";
import { Button } from "../ui/Button";
import { ErrorNote } from "../ui/Note";
import { shortTime } from "../ui/time";
import { LoadNote } from "./LoadNote";
import { repeat } from "./loaded";
import { cancelJob, jobActions, jobs } from "./store";

const REFRESH_SECONDS = 2;

/** The latest long pieces of work, with their progress. */
export function Jobs() {
  const list = jobs.data.value;
  const active = list?.some((job) => job.status === "queued" || job.status === "running") ?? false;
  useEffect(() => (active ? repeat(REFRESH_SECONDS, () => jobs.load()) : undefined), [active]);
  return (
    <section class="panel stack" aria-label="Jobs">
      <h2>Jobs</h2>
      <LoadNote what="jobs" loaded={jobs} />
      {list?.length === 0 && <p class="muted">None yet. Making and measuring vectors appears here.</p>}
      <ul class="stack jobs">
        {list?.slice(0, 8).map((job) => (
          <JobRow key={job.id} job={job} />
        ))}
      </ul>
    </section>
  );
}

function JobRow({ job }: { job: JobSummary }) {
  const { done = 0, total = 0, message = "" } = job.progress;
  const name = job.kind.replaceAll("_", " ");
  const open = job.status === "queued" || job.status === "running";
  return (
    <li class="row between">
      <span>
        {name} <span class="small muted">{shortTime(job.created_at)}</span>
        {open && message && <span class="small muted"> {message}</span>}
        {job.error && <span class="small"> {job.error.message}</span>}
      </span>
      <span class="row">
        {open && total > 0 && <progress value={done} max={total} aria-label={`Progress of ${name}`} />}
        <span class={`badge ${job.status === "succeeded" ? "good" : job.status === "failed" ? "bad" : ""}`}>
          {job.status}
        </span>
        {open && (
          <Button disabled={jobActions.busy.value} onClick={() => void cancelJob(job.id)}>
            Cancel<span class="visually-hidden"> {name}</span>
          </Button>
        )}
      </span>
      <ErrorNote error={jobActions.errorAt(`job ${job.id}`)} />
    </li>
  );
}
