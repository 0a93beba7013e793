import { useEffect } from "preact/hooks";
import { isRefusal } from "../api/errors";
import { apiKey } from "../api/retry";
import type { Job } from "../api/types";
import { cancelJob, dismiss, JOB_WORDS, jobs, openJobs, otherJobs, showCard, type Task, tasks } from "../core/jobs";
import { Mutations } from "../core/mutation";
import { repeat } from "../core/query";
import { capabilities } from "../core/server";
import { vectorByName } from "../core/vectors";
import { Button } from "../ui/Button";
import { ErrorNote } from "../ui/Note";
import { Progress } from "../ui/Progress";

const REFRESH_SECONDS = 4;
const cancelling = new Mutations<`job ${string}`>();

/** The jobs that run, in the top bar: those of this tab, which outlive a reload, and those of others. */
export function JobTray() {
  useJobs();
  const [own, others] = [tasks.value, otherJobs.value];
  const open = openJobs.value;
  if (own.length + others.length === 0) return null;
  return (
    <details class="tray">
      <summary>
        {open > 0 && <span class="spinner" aria-hidden="true" />}
        {open === 0 ? "Jobs: none runs" : `${open} ${open === 1 ? "job" : "jobs"}`}
      </summary>
      <ul class="panel stack" aria-label="Running jobs">
        {own.map((task, index) => (
          <li key={index}>{task.ended.value ? <Ended task={task} /> : <TaskProgress task={task} />}</li>
        ))}
        {others.map((job) => (
          <OtherJob key={job.id} job={job} />
        ))}
      </ul>
    </details>
  );
}

/** Reads the jobs of the server again and again, as long as the key of this tab may see them. */
function useJobs(): void {
  const known = capabilities.value !== null;
  useEffect(() => {
    if (!known) return;
    void jobs.load();
    return repeat(REFRESH_SECONDS, async () => void (isRefusal(jobs.error.peek()) || (await jobs.load())));
  }, [apiKey.value, known]);
}

/** What a task does, how far it is, how long it still takes, and the button that stops it. */
export function TaskProgress({ task }: { task: Task }) {
  const { message, done, total } = task.step;
  const { kind, vector } = task.about;
  return (
    <Progress
      message={`${JOB_WORDS[kind]} ${vector}: ${message}`}
      done={done}
      total={total}
      left={task.remaining.seconds}
      onStop={task.stop}
    />
  );
}

function Ended({ task }: { task: Task }) {
  const { kind, vector } = task.about;
  const error = task.error.value;
  return (
    <div class="row between">
      <span>
        {JOB_WORDS[kind]} {vector}: {error !== null ? "failed" : task.stopping.value ? "stopped" : "done"}
      </span>
      <span class="row">
        {vectorByName.value.has(vector) && <Button label="Show its card" onClick={() => showCard(vector)} />}
        <button type="button" class="quiet" onClick={() => dismiss(task)}>
          Close<span class="visually-hidden"> {vector}</span>
        </button>
      </span>
      <ErrorNote error={error} />
    </div>
  );
}

/** What a job does to which vector. */
export function jobName({ kind, subject }: Job): string {
  return [kind.replaceAll("_", " "), subject].filter(Boolean).join(" ");
}

/** A job of another tab or caller. */
function OtherJob({ job }: { job: Job }) {
  const { done = 0, total = 0, message = "" } = job.progress;
  const cancel = () => void cancelling.run(`job ${job.id}`, () => cancelJob(job.id).then(() => jobs.load()));
  return (
    <li class="progress">
      <div class="row between">
        <span>
          {jobName(job)} <span class="small muted">{message || job.status}</span>
        </span>
        <Button disabled={cancelling.busy.value} onClick={cancel}>
          Cancel<span class="visually-hidden"> {jobName(job)}</span>
        </Button>
      </div>
      <progress aria-label={`Progress of ${jobName(job)}`} {...(total > 0 ? { value: done, max: total } : {})} />
      <ErrorNote error={cancelling.errorAt(`job ${job.id}`)} />
    </li>
  );
}
