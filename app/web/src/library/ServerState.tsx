import { capabilities, load } from "../frame/server";

/** The model, its size, and what the engine does. */
export function ServerState() {
  const known = capabilities.value;
  if (!known) return null;
  const { model } = known;
  const facts: [string, string][] = [
    ["model", model.name],
    ["architecture", model.architecture],
    ["parameters", `${(model.parameters / 1e6).toFixed(0)} million`],
    ["layers × width", `${model.layers} × ${model.d_model}`],
    ["context", `${model.context_length} tokens`],
    ["device, precision", `${model.device}, ${model.dtype}`],
    ["engine", known.engine],
    ["weights", model.fingerprint.slice(0, 16)],
  ];
  const executor = (known as { executor?: unknown }).executor;
  if (typeof executor === "string") facts.push(["executor", executor]);
  if (load.value) facts.push(["requests", `${load.value.running} running, ${load.value.waiting} waiting`]);
  return (
    <section class="panel stack" aria-label="Server">
      <h2>Server</h2>
      <dl class="provenance">
        {facts.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      <details class="more">
        <summary>Limits of one request</summary>
        <dl class="provenance small">
          {Object.entries(known.limits).map(([name, value]) => (
            <div key={name}>
              <dt>{name.replaceAll("_", " ")}</dt>
              <dd class="number">{value.toLocaleString("en")}</dd>
            </div>
          ))}
        </dl>
      </details>
    </section>
  );
}
