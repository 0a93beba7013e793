/** Read. */
export default function Read() {
  return <p class="muted">Read</p>;
}
