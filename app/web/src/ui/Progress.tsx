interface Props {
  message: string;
  done: number;
  total: number;
  onStop?: () => void;
}

/** Shows how far a long piece of work has come, with a way to stop it. */
export function Progress({ message, done, total, onStop }: Props) {
  return (
    <div class="progress" role="status">
      <div class="row between">
        <span>{message || "Working"}</span>
        <span class="row">
          {total > 0 && (
            <span class="number small">
              {done} / {total}
            </span>
          )}
          {onStop && (
            <button type="button" onClick={onStop}>
              Stop
            </button>
          )}
        </span>
      </div>
      <progress aria-label={message || "Progress"} {...(total > 0 ? { value: done, max: total } : {})} />
    </div>
  );
}
