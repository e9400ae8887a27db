// The server's interface, as the page uses it: every refusal becomes a `Refusal` whose message is for people.

const KEY = "videomaker.key";

export class Refusal extends Error {
  constructor(message, { status = 0, param = null, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter });
  }
}

export const key = {
  get: () => localStorage.getItem(KEY) ?? "",
  set: (value) => localStorage.setItem(KEY, value),
  forget: () => localStorage.removeItem(KEY),
};

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch {
    throw new Refusal("The server does not answer. What was accepted is safe; try again in a moment.");
  }
  if (answer.ok) return answer.json();
  throw await refusalOf(answer);
}

async function refusalOf(answer) {
  const { error = {} } = await answer.json().catch(() => ({}));
  const retryAfter = Number(answer.headers.get("retry-after")) || null;
  let message = sentence(error.message ?? `the server answered ${answer.status} without a reason`);
  if (retryAfter && answer.status !== 401) message += ` Try again in ${span(retryAfter)}.`;
  return new Refusal(message, { status: answer.status, param: error.param, code: error.code, retryAfter });
}

export const api = {
  models: () => ask("/v1/models"),
  list: (after, limit) => ask(`/v1/videos?limit=${limit}${after ? `&after=${encodeURIComponent(after)}` : ""}`),
  get: (id) => ask(`/v1/videos/${encodeURIComponent(id)}`),
  create: (form) => ask("/v1/videos", { method: "POST", body: form, headers: { "idempotency-key": nonce() } }),
  cancel: (id) => ask(`/v1/videos/${encodeURIComponent(id)}/cancel`, { method: "POST" }),
  remove: (id) => ask(`/v1/videos/${encodeURIComponent(id)}`, { method: "DELETE" }),
};

// `crypto.randomUUID` is there only on https and on this machine.
const nonce = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (word) => word.toString(16)).join("-");

// The first letter large, a full stop at the end.
export function sentence(text) {
  const whole = text.trim();
  return whole.charAt(0).toUpperCase() + whole.slice(1) + (/[.!?…]$/.test(whole) ? "" : ".");
}

// Seconds in words.
export function span(seconds) {
  if (seconds < 1.5) return "a second";
  if (seconds < 90) return `${Math.round(seconds)} seconds`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} minutes`;
  return `${Math.round(seconds / 3600)} hours`;
}
