interface Props {
  /** What it does, in words. */
  children: string;
  accept: string;
  /** Takes the file. What it throws goes to `onProblem`. */
  take: (file: File) => Promise<void>;
  /** Hears why a file was not taken; null once another one is chosen. */
  onProblem: (problem: unknown) => void;
}

/** Opens a file of the user's machine. The same file can be chosen again: it may have been corrected meanwhile. */
export function FileButton({ children, accept, take, onProblem }: Props) {
  const choose = (input: HTMLInputElement) => {
    const [chosen] = input.files ?? [];
    input.value = ""; // or the browser says nothing of the same file
    if (!chosen) return;
    onProblem(null);
    take(chosen).catch(onProblem);
  };
  return (
    <label class="button">
      {children}
      <input type="file" class="visually-hidden" accept={accept} onChange={(event) => choose(event.currentTarget)} />
    </label>
  );
}
