/** Library. */
export default function Library() {
  return <p class="muted">Library</p>;
}
