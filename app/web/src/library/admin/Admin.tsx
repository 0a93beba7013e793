import "../../styles/library.css";
import { useEffect } from "preact/hooks";
import { apiKey, type Job } from "../../api/client";
import { cancelling, isOpen, jobs } from "../../core/jobs";
import { capabilities, load, serverTrouble } from "../../core/server";
import { CancelJob, jobName } from "../../frame/JobTray";
import { ErrorNote, Facts, List, LoadNote, More, Panel, ProgressBar, shortTime } from "../../ui/parts";
import { hints } from "../../words.json";
import { Keys } from "./Keys";
import { Monitors, PolicyPanel } from "./Policy";
import { loadAdmin } from "./store";

/** Admin: who may do what, what holds for all requests, what is watched, and what the server does. */
export default function Admin() {
  const reachable = serverTrouble.value === null;
  useEffect(() => {
    if (!reachable) return; // it is read as soon as the server answers again
    void loadAdmin();
    void jobs.load();
  }, [apiKey.value, reachable]);
  return (
    <>
      <div class="columns">
        <PolicyPanel />
        <Keys />
      </div>
      <Monitors />
      <div class="columns">
        <Jobs />
        <ServerState />
      </div>
    </>
  );
}

const SHOWN = 8;

/** The latest long pieces of work, with their progress. The tray of the top bar reads them again and again. */
export function Jobs() {
  const shown = jobs.data.value?.slice(0, SHOWN);
  const entry = (job: Job) => (
    <li key={job.id} class="row between">
      <span>
        <strong>{jobName(job)}</strong> <span class="small muted">{shortTime(job.created_at)}</span>
        {isOpen(job) && job.progress.message && <span class="small muted"> {job.progress.message}</span>}
        {job.error && <span class="small"> {job.error.message}</span>}
      </span>
      <span class="row">
        {isOpen(job) && !!job.progress.total && <ProgressBar label={`Progress of ${jobName(job)}`} {...job.progress} />}
        <span class={`badge ${LOOKS[job.status] ?? ""}`}>{job.status}</span>
        {isOpen(job) && <CancelJob job={job} />}
      </span>
      <ErrorNote error={cancelling.errorAt(`job ${job.id}`)} />
    </li>
  );
  return (
    <Panel title="Jobs">
      <LoadNote what="jobs" query={jobs} />
      <List of={shown} kind="stack jobs" none={hints.noJobs} row={entry} />
    </Panel>
  );
}

const LOOKS: Readonly<Record<string, string>> = { succeeded: "good", failed: "bad" };

function ServerState() {
  const known = capabilities.value;
  if (!known) return null;
  const { model, limits } = known;
  const facts: [string, string][] = [
    ["model", model.name],
    ["architecture", model.architecture],
    ["parameters", `${(model.parameters / 1e6).toFixed(0)} million`],
    ["layers × width", `${model.layers} × ${model.d_model}`],
    ["context", `${model.context_length} tokens`],
    ["device, precision", `${model.device}, ${model.dtype}`],
    ["engine", `${known.engine}, ${known.executor}`],
    ["weights", model.fingerprint.slice(0, 16)],
  ];
  if (known.kernels) facts.push(["kernels", known.kernels]);
  if (load.value) facts.push(["requests", `${load.value.running} running, ${load.value.waiting} waiting`]);
  const words = ([name, value]: [string, number]) => [name.replaceAll("_", " "), value.toLocaleString("en")] as const;
  return (
    <Panel title="Server">
      <Facts of={facts} />
      <More summary="Limits of one request">
        <Facts of={Object.entries(limits).map(words)} />
      </More>
    </Panel>
  );
}
