import { useState } from "preact/hooks";
import { looksLikePairs } from "../maths/text";
import { FileButton, TextBox } from "../ui/fields";
import { ErrorNote, Remove } from "../ui/parts";
import { addText, removeRow, rows, setRow } from "./store";

const MAX_ROWS = 60;
const ACCEPTED = ".csv,.tsv,.jsonl,.ndjson,text/csv";

/** The pairs as a table to type in. Tables and files can be pasted into it, and files added. */
export function PairTable() {
  const [error, setError] = useState<unknown>(null);
  const add = (text: string) => {
    try {
      setError(null);
      addText(text);
    } catch (failure) {
      setError(failure);
    }
  };
  const paste = (event: ClipboardEvent) => {
    const text = event.clipboardData?.getData("text/plain") ?? "";
    if (!looksLikePairs(text)) return;
    event.preventDefault();
    add(text);
  };
  return (
    <div class="stack" onPaste={paste}>
      <table class="pairs">
        <thead>
          <tr>
            <th scope="col">Positive</th>
            <th scope="col">Negative</th>
            <td />
          </tr>
        </thead>
        <tbody>
          {rows.value.slice(0, MAX_ROWS).map((row, index) => (
            <tr key={index}>
              <Cell index={index} side="positive" value={row.positive} />
              <Cell index={index} side="negative" value={row.negative} />
              <td>
                <Remove label={`Remove pair ${index + 1}`} onClick={() => removeRow(index)} />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      {rows.value.length > MAX_ROWS && (
        <p class="small muted">and {rows.value.length - MAX_ROWS} more pairs that are used too</p>
      )}
      <ErrorNote error={error} />
      <div class="row">
        <FileButton accept={ACCEPTED} take={async (file) => addText(await file.text())} onProblem={setError}>
          Add a CSV or JSONL file
        </FileButton>
        <span class="small muted">or paste two columns, CSV or JSONL into the table</span>
      </div>
    </div>
  );
}

function Cell({ index, side, value }: { index: number; side: "positive" | "negative"; value: string }) {
  const rows = Math.min(4, Math.max(1, Math.ceil(value.length / 32)));
  const change = (text: string) => setRow(index, { [side]: text });
  return (
    <td>
      <TextBox label={`${side} ${index + 1}`} rows={rows} value={value} onChange={change} />
    </td>
  );
}
