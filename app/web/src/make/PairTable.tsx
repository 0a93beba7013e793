import { useState } from "preact/hooks";
import { looksLikePairs, type PairRow } from "../maths/text";
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
              {(["positive", "negative"] as const).map((side) => (
                <td key={side}>
                  <TextBox label={`${side} ${index + 1}`} {...sized(row[side])} onChange={change(index, side)} />
                </td>
              ))}
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

const sized = (value: string) => ({ value, rows: Math.min(4, Math.max(1, Math.ceil(value.length / 32))) });
const change = (index: number, side: keyof PairRow) => (text: string) => setRow(index, { [side]: text });
