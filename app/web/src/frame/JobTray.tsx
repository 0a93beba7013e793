import { useEffect } from "preact/hooks";
import { apiKey, isRefusal, type Job } from "../api/client";
import * as core from "../core/jobs";
import { repeat } from "../core/query";
import { capabilities, vectorByName } from "../core/server";
import { Button, ErrorNote, Progress, ProgressBar } from "../ui/parts";

const REFRESH_SECONDS = 4;

/** The jobs that run, in the top bar: those of this tab, which outlive a reload, and those of others. They are read again and again, as
 * long as the key of this tab may see them. */
export function JobTray() {
  const known = capabilities.value !== null;
  useEffect(() => {
    if (!known) return;
    void core.jobs.load();
    return repeat(REFRESH_SECONDS, async () => void (isRefusal(core.jobs.error.peek()) || (await core.jobs.load())));
  }, [apiKey.value, known]);
  const [own, others] = [core.tasks.value, core.otherJobs.value];
  const open = core.openJobs.value;
  if (own.length + others.length === 0) return null;
  return (
    <details class="tray">
      <summary>
        {open > 0 && <span class="spinner" aria-hidden="true" />}
        {open === 0 ? "Jobs: none runs" : `${open} ${open === 1 ? "job" : "jobs"}`}
      </summary>
      <ul class="panel stack" aria-label="Running jobs">
        {own.map((task, index) => (
          <li key={index}>{task.ended.value ? ended(task) : <TaskProgress task={task} />}</li>
        ))}
        {others.map((job) => (
          <li key={job.id} class="progress">
            <div class="row between">
              <span>
                {jobName(job)} <span class="small muted">{job.progress.message || job.status}</span>
              </span>
              <CancelJob job={job} />
            </div>
            <ProgressBar label={`Progress of ${jobName(job)}`} {...job.progress} />
            <ErrorNote error={core.cancelling.errorAt(`job ${job.id}`)} />
          </li>
        ))}
      </ul>
    </details>
  );
}

/** What a task does, how far it is, how long it still takes, and the button that stops it. */
export function TaskProgress({ task: { step, about, stop } }: { task: core.Task }) {
  const message = `${core.aboutWords(about)}: ${step.message}`;
  return <Progress {...step} message={message} onStop={stop} />;
}

const ended = (task: core.Task, { vector } = task.about, error = task.error.value) => (
  <div class="row between">
    <span>
      {core.aboutWords(task.about)}: {error !== null ? "failed" : task.stopping.value ? "stopped" : "done"}
    </span>
    <span class="row">
      {vectorByName.value.has(vector) && <Button label="Show its card" onClick={() => core.showCard(vector)} />}
      <Button label="Close" hidden={` ${vector}`} kind="quiet" onClick={() => core.dismiss(task)} />
    </span>
    <ErrorNote error={error} />
  </div>
);

export const jobName = ({ kind, subject }: Job): string =>
  [kind.replaceAll("_", " "), subject].filter(Boolean).join(" ");

export function CancelJob({ job }: { job: Job }) {
  const { busy } = core.cancelling;
  return <Button label="Cancel" hidden={` ${jobName(job)}`} disabled={busy.value} onClick={() => core.cancel(job)} />;
}
