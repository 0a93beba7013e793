import type { Job } from "../api/types";
import { isOpen, jobs } from "../core/jobs";
import { jobName } from "../frame/JobTray";
import { Button } from "../ui/Button";
import { ErrorNote, shortTime } from "../ui/Note";
import { LoadNote } from "./LoadNote";
import { cancelJob, jobActions } from "./store";

const SHOWN = 8;

/** The latest long pieces of work, with their progress. The tray of the top bar reads them again and again. */
export function Jobs() {
  const list = jobs.data.value;
  return (
    <section class="panel stack" aria-label="Jobs">
      <h2>Jobs</h2>
      <LoadNote what="jobs" query={jobs} again={() => jobs.load()} />
      {list?.length === 0 && <p class="muted">None yet. Making and measuring vectors appears here.</p>}
      <ul class="stack jobs">
        {list?.slice(0, SHOWN).map((job) => (
          <JobRow key={job.id} job={job} />
        ))}
      </ul>
    </section>
  );
}

const LOOKS: Readonly<Record<string, string>> = { succeeded: "good", failed: "bad" };

function JobRow({ job }: { job: Job }) {
  const { done = 0, total = 0, message = "" } = job.progress;
  const name = jobName(job);
  const open = isOpen(job);
  return (
    <li class="row between">
      <span>
        <strong>{name}</strong> <span class="small muted">{shortTime(job.created_at)}</span>
        {open && message && <span class="small muted"> {message}</span>}
        {job.error && <span class="small"> {job.error.message}</span>}
      </span>
      <span class="row">
        {open && total > 0 && <progress value={done} max={total} aria-label={`Progress of ${name}`} />}
        <span class={`badge ${LOOKS[job.status] ?? ""}`}>{job.status}</span>
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
