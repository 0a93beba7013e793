import type { PlaceName } from "./places";

const PATHS: Readonly<Record<PlaceName | "theme" | "key" | "help", string>> = {
  compare: "M4 5h6v14H4zM14 5h6v14h-6zM16 9h2M16 12h2M6 9h2",
  make: "M12 4v16M4 12h16M6.5 6.5l2 2M15.5 15.5l2 2",
  space: "M4 20 20 6m0 0h-6m6 0v6M7 8h.01M10 5h.01M14 18h.01M18 16h.01M6 13h.01",
  read: "M4 6h10M4 10h16M4 14h12M4 18h16",
  library: "M5 4v16M9 4v16M13 4l6 16M4 20h6",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  key: "M15 9a4 4 0 1 0-3.5 4L14 15h2v2h2v2h3v-3l-6-6z",
  help: "M9 9a3 3 0 1 1 4 3c-1 .5-1 1-1 2m0 3h.01",
};

/** Draws one of the icons; the words next to it name it, so it is hidden from screen readers. */
export function Icon({ name, size = 20 }: { name: keyof typeof PATHS; size?: number }) {
  return (
    <svg
      width={size}
      height={size}
      viewBox="0 0 24 24"
      fill="none"
      stroke="currentColor"
      stroke-width="2"
      aria-hidden="true"
    >
      <path d={PATHS[name]} stroke-linecap="round" stroke-linejoin="round" />
    </svg>
  );
}
