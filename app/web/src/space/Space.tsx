/** Space. */
export default function Space() {
  return <p class="muted">Space</p>;
}
