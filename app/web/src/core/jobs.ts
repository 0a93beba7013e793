import { computed, signal } from "@preact/signals";
import { ApiError, api, dataOf, follow, isAbort, isLost, type Job, messageOf, pause, send } from "../api/client";
import { announce, notify, type Step } from "../ui/parts";
import { jobs as kinds } from "../words.json";
import { type PlaceName, place } from "./places";
import { Mutations, Query } from "./query";
import { card, library, serverTrouble } from "./server";
import { given, remembered } from "./state";

const AGAIN_SECONDS = 1;

/** The request that starts a job, sent with these options. */
export type StartJob = (options: { fetch: (request: Request) => Promise<Response> }) => Promise<Job>;

/** Starts a job, follows it until it ends and returns it. Throws an error unless it succeeded.
 * Stopping works at any time: before the request is sent, while it waits to be repeated, while the server accepts it (the job is
 * cancelled as soon as its id is known) and while it runs. It throws AbortError, the server's error where the job could not be
 * cancelled, or returns the job where that had succeeded before. */
export async function runToEnd(start: StartJob, onProgress: (job: Job) => void, stop: AbortSignal): Promise<Job> {
  stop.throwIfAborted();
  const job = await start({ fetch: (request) => send(request, undefined, stop) });
  let last = job;
  try {
    stop.throwIfAborted();
    onProgress(job);
    last = isOpen(job) ? await followed(job, onProgress, stop) : job;
  } catch (failure) {
    if (!stop.aborted) throw failure;
    last = await cancelJob(job.id);
    if (last.status !== "succeeded") stop.throwIfAborted();
  }
  if (last.status !== "succeeded") throw new Error(last.error?.message ?? `The job was ${last.status}.`);
  return last;
}

/** Follows a job to its end. The server ends a stream that has grown old, while the job goes on: it is followed again then. So it is after the
 * server was lost: once it is back it knows how the job goes on, or why it has ended. */
async function followed(job: Job, onProgress: (job: Job) => void, stop: AbortSignal): Promise<Job> {
  let last = job;
  const take = (name: string, data: unknown) => {
    if (name !== "progress" && name !== "done") return;
    last = data as Job;
    if (!stop.aborted) onProgress(last);
  };
  for (; ; await pause(AGAIN_SECONDS, stop)) {
    try {
      await follow(`/v1/jobs/${encodeURIComponent(job.id)}/events`, take, stop);
      if (isOpen(last)) last = await readJob(job.id, stop);
    } catch (failure) {
      if (!isLost(failure)) throw failure;
    }
    if (!isOpen(last)) return last;
  }
}

export const isOpen = ({ status }: Job): boolean => status === "queued" || status === "running";

const readJob = (id: string, signal?: AbortSignal): Promise<Job> =>
  dataOf<Job>(api.GET("/v1/jobs/{job_id}", { params: { path: { job_id: id } }, ...given({ signal }) }));

const cancelJob = (id: string): Promise<Job> =>
  dataOf<Job>(api.DELETE("/v1/jobs/{job_id}", { params: { path: { job_id: id } } }));

/** What a job is for: where it was started, what it does, and the vector it makes or measures. */
type About = { place: PlaceName; kind: keyof typeof kinds; vector: string };

export const aboutWords = ({ kind, vector }: About): string => `${kinds[kind].words} ${vector}`;

/** A job that this tab started, from the request to the end. It outlives a reload of the page. */
export class Task {
  readonly job = signal<Job | null>(null);
  /** Why it ended without its result; null while it runs, and where it was stopped. */
  readonly error = signal<unknown>(null);
  readonly stopping = signal(false);
  /** Whether it succeeded, failed or was stopped. */
  readonly ended = signal(false);
  /** Resolves once it has ended, with whether it succeeded. */
  readonly end: Promise<boolean>;
  private readonly stopper = new AbortController();

  constructor(
    readonly about: About,
    start: StartJob,
  ) {
    this.end = this.follow(start);
  }

  private async follow(start: StartJob): Promise<boolean> {
    const { kind, vector } = this.about;
    try {
      await runToEnd(start, (job) => (this.job.value = job), this.stopper.signal);
    } catch (failure) {
      if (isAbort(failure)) announce("Stopped.");
      else this.error.value = failure;
      this.ended.value = true;
      return false;
    }
    await library.load();
    const unread = library.error.peek();
    const why = `${vector} was stored, but the library could not be read again. ${messageOf(unread)}`;
    if (unread !== null) this.error.value = new Error(why);
    this.ended.value = true;
    if (place.peek() === this.about.place && kind !== "starter" && kind !== "measure") showCard(vector);
    notify(`${vector}: ${kinds[kind].ended}`);
    return true;
  }

  /** How far it is, in words and numbers, and how many seconds it still takes. */
  get step(): Step & { left: number | null } {
    const { message = "", done = 0, total = 0, seconds_left: left = null } = this.job.value?.progress ?? {};
    const begun = this.job.value?.status === "running" ? "working" : "waiting to begin";
    const now = serverTrouble.value === null ? message || begun : "waiting for the server";
    return { message: this.stopping.value ? "stopping" : now, done, total, left };
  }

  /** Stops it. The server may need a moment to cancel it. */
  readonly stop = (): void => {
    this.stopping.value = true;
    this.stopper.abort();
  };
}

export function showCard(vector: string): void {
  card.value = vector;
  if (place.peek() !== "make") location.hash = "#/make";
}

/** Its id is empty until the server has answered the request that starts it. */
type Saved = About & { id: string };

const isSaved = (one: unknown) => typeof (one as Saved).id === "string" && (one as Saved).kind in kinds;

/** The jobs of this tab that have not ended, for a reload. */
const saved = remembered<readonly Saved[]>("jobs", [], (before) =>
  Array.isArray(before) ? before.filter(isSaved) : undefined,
);

/** The jobs that this tab started, oldest first. One that has ended stays until a person has taken note of it. */
export const tasks = signal<readonly Task[]>([]);
export const openTasks = computed(() => tasks.value.filter((task) => !task.ended.value));

const latestJobs = async (): Promise<Job[]> => (await dataOf<{ data: Job[] }>(api.GET("/v1/jobs"))).data;

/** The latest jobs of the server, those of other tabs and callers among them. */
export const jobs = new Query(latestJobs);
export const cancelling = new Mutations<`job ${string}`>();

export const cancel = ({ id }: Job): Promise<boolean> =>
  cancelling.run(`job ${id}`, () => cancelJob(id).then(() => jobs.load()));

export const otherJobs = computed(() => {
  const own = new Set(tasks.value.map((task) => task.job.value?.id));
  return (jobs.data.value ?? []).filter((job) => isOpen(job) && !own.has(job.id));
});

export const openJobs = computed(() => openTasks.value.length + otherJobs.value.length);

/** Starts a job and keeps it in the tray. `left`: what was saved of it when the page was left; it stays saved while it cannot be read. */
export function begin(about: About, start: StartJob, left: Saved | null = null): Task {
  const entry = left ?? { ...about, id: "" };
  if (left === null) saved.value = [...saved.value, entry];
  const replaced = tasks.value.filter((one) => !(one.ended.peek() && one.about.place === about.place));
  const task = new Task(about, async (options) => {
    const job = await start(options);
    saved.value = [...saved.value.filter((one) => one !== entry && one.id !== job.id), { ...about, id: job.id }];
    return job;
  });
  tasks.value = [...replaced, task];
  void task.end.then(() => {
    saved.value = saved.value.filter((one) => one.id !== task.job.value?.id && (one !== entry || left !== null));
    void jobs.load();
  });
  return task;
}

type JobPath = `/v1/vectors/${"extract" | "distil" | "transfer"}` | "/v1/evaluations";

/** Starts the job of a request and keeps it in the tray. */
export const beginJob = (about: About, path: JobPath, body: object): Task =>
  begin(about, (options) => dataOf<Job>(api.POST(path, { body: body as never, ...options })));

export function dismiss(task: Task): void {
  tasks.value = tasks.value.filter((one) => one !== task);
}

/** Goes on with the jobs that were running when the page was left. One that the server does not know any more is forgotten. */
export function resumeJobs(): void {
  for (const entry of saved.peek()) {
    const { id, ...about } = entry;
    const task = begin(about, () => (id === "" ? startedJob(about) : readJob(id)), entry);
    void task.end.then(() => {
      const error = task.error.peek();
      if (!(error instanceof ApiError && error.status === 404)) return;
      saved.value = saved.value.filter((one) => one !== entry);
      dismiss(task);
    });
  }
}

/** Finds the open job of a request that was sent when the page was left, before the server had answered it. */
async function startedJob({ kind, vector }: About): Promise<Job> {
  const own = new Set(saved.peek().map(({ id }) => id));
  const same = (job: Job) => job.kind === kinds[kind].server && job.subject === vector && isOpen(job);
  const job = (await latestJobs()).find((one) => same(one) && !own.has(one.id));
  if (!job) throw new ApiError(404, "not_found", "The server runs no job for the request.");
  return job;
}

/** The newest job that was started in a place, until it is dismissed. */
export const taskOf = (name: PlaceName): Task | null =>
  tasks.value.findLast((task) => task.about.place === name) ?? null;

export function stopTasks(name: PlaceName): void {
  for (const task of openTasks.peek()) if (task.about.place === name) task.stop();
}
