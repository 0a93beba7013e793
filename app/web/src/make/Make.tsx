/** Make. */
export default function Make() {
  return <p class="muted">Make</p>;
}
