/** An error answer of the server: `message` is for people, `code` is stable, `param` names the field. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly param: string | null = null,
    readonly requestId: string | null = null,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

interface ErrorBody {
  error?: { message?: unknown; code?: unknown; param?: unknown };
}

/** An error as it stands in events and in the arms of a comparison. */
export interface ServerError {
  error: { message: string; code: string; param?: string | null };
}

/** Reads the error body of a response; a body of another shape gives a message with the status alone. */
export async function errorOf(response: Response): Promise<ApiError> {
  const body = (await response.json().catch(() => ({}))) as ErrorBody;
  return errorFromBody(body, response.status, response.headers.get("X-Request-Id"));
}

/** Builds an ApiError from a parsed error body, as it also stands in `error` events. */
export function errorFromBody(body: ErrorBody, status: number, requestId: string | null = null): ApiError {
  const { message, code, param } = body.error ?? {};
  return new ApiError(
    status,
    typeof code === "string" ? code : "unknown",
    typeof message === "string" ? message : `The server answered with status ${status}.`,
    typeof param === "string" ? param : null,
    requestId,
  );
}

/** Whether the server does not let the key of this tab see or do something. */
export function isRefusal(error: unknown): boolean {
  return error instanceof ApiError && (error.status === 401 || error.status === 403);
}

/** Whether an error only says that the caller stopped the request. */
export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

/** One sentence for a person about anything that was thrown. */
export function messageOf(error: unknown): string {
  if (error instanceof ApiError) return error.message;
  if (error instanceof TypeError) return "The server cannot be reached. Is it still running?";
  return error instanceof Error ? error.message : String(error);
}
