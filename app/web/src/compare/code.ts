import type { CompareBody } from "./draft";

export type CodeKind = "curl" | "python" | "openai" | "json";

export const CODE_WORDS: readonly (readonly [CodeKind, string])[] = [
  ["curl", "curl"],
  ["python", "Python"],
  ["openai", "OpenAI client"],
  ["json", "JSON"],
];

/** Returns the comparison as a person would write it for a terminal, Python or the openai package. */
export function codeFor(kind: CodeKind, body: CompareBody, origin: string, model: string): string {
  if (kind === "json") return JSON.stringify(body, null, 2);
  if (kind === "curl") return curl(body, origin);
  if (kind === "python") return python(body, origin);
  return openai(body, origin, model);
}

function curl(body: CompareBody, origin: string): string {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl ${origin}/v1/compare \\\n  -H "Authorization: Bearer $STEERING_API_KEY" \\\n  -H "Content-Type: application/json" \\\n  -d '${json}'`;
}

function python(body: CompareBody, origin: string): string {
  return [
    "import os",
    "",
    "import httpx2",
    "",
    `body = ${literal(body)}`,
    `headers = {"Authorization": f"Bearer {os.environ.get('STEERING_API_KEY', '')}"}`,
    `response = httpx2.post("${origin}/v1/compare", json=body, headers=headers, timeout=300)`,
    "response.raise_for_status()",
    'for arm in response.json()["arms"]:',
    '    print(arm["name"], arm["choices"][0]["text"], sep=": ")',
  ].join("\n");
}

function openai(body: CompareBody, origin: string, model: string): string {
  const arm = body.arms.find((one) => Array.isArray(one.steering) && one.steering.length > 0) ?? body.arms[0];
  const chat = body.messages !== undefined;
  const input = chat ? `messages=${literal(body.messages, 4)}` : `prompt=${literal(body.prompt)}`;
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${origin}/v1", api_key=os.environ.get("STEERING_API_KEY", "none"))`,
    `answer = client.${chat ? "chat.completions" : "completions"}.create(`,
    `    model="${model}",`,
    `    ${input},`,
    `    max_tokens=${body.max_tokens},`,
    `    temperature=${body.temperature},`,
    `    top_p=${body.top_p},`,
    `    seed=${body.seed},`,
    `    extra_body={"steering": ${literal(arm?.steering ?? [], 4)}},`,
    ")",
    `print(answer.choices[0].${chat ? "message.content" : "text"})`,
  ].join("\n");
}

/** Writes a JSON value as a Python literal. */
export function literal(value: unknown, indent = 0): string {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const pad = " ".repeat(indent + 4);
  const close = `\n${" ".repeat(indent)}`;
  if (Array.isArray(value)) {
    if (value.every((one) => one === null || typeof one !== "object"))
      return `[${value.map((one) => literal(one)).join(", ")}]`;
    return `[${value.map((one) => `\n${pad}${literal(one, indent + 4)},`).join("")}${close}]`;
  }
  const entries = Object.entries(value).filter(([, one]) => one !== undefined);
  return `{${entries.map(([key, one]) => `\n${pad}${JSON.stringify(key)}: ${literal(one, indent + 4)},`).join("")}${close}}`;
}
