import type { ComponentChildren } from "preact";

interface TableProps {
  /** What it has, for those who hear it. */
  label: string;
  head: readonly string[];
  /** The cells of each row; the first one names it. */
  rows: readonly (readonly ComponentChildren[])[];
}

/** A table in a box that scrolls. A row whose other cells are all alike is muted. */
export function Table({ label, head, rows }: TableProps) {
  return (
    <Scroll label={label}>
      <table class="list">
        <thead>
          <tr>{head.map((title, index) => (title === "" ? <td key={index} /> : <th key={index}>{title}</th>))}</tr>
        </thead>
        <tbody>
          {rows.map(([name, ...cells], index) => (
            <tr key={index} class={cells.length === 2 && cells[0] === cells[1] ? "muted" : ""}>
              <th scope="row">{name}</th>
              {cells.map((cell, column) => (
                <td key={column} class={typeof cell === "number" ? "number" : ""}>
                  {cell}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </Scroll>
  );
}

interface ScrollProps {
  label: string;
  kind?: string;
  children: ComponentChildren;
}

/** A box that scrolls, which is reachable by keyboard. */
export function Scroll({ label, kind = "", children }: ScrollProps) {
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard
    <div class={`scroll ${kind}`} tabIndex={0} role="region" aria-label={label}>
      {children}
    </div>
  );
}

/** Names with what they are. */
export function Facts({ of }: { of: readonly (readonly [string, ComponentChildren])[] }) {
  return (
    <dl class="provenance">
      {of.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}
