// Requests. The token is in this module's memory alone: not in a URL, a cookie or the browser's storage.

// A console that hangs, or a network that is gone, answers neither yes nor no.
const PATIENCE_MS = 60000;
const UNAUTHORIZED = 401;

let token = null;
let operator = null;

export const who = () => operator;

export class Refused extends Error {
  constructor(status, body) {
    super(body.problem ?? "the request failed");
    this.status = status;
    this.remedy = body.remedy ?? "";
  }
}

async function request(path, options = {}) {
  const headers = { Accept: "application/json", ...(options.headers ?? {}) };
  const used = options.token === undefined ? token : options.token;
  if (used) headers.Authorization = `Bearer ${used}`;
  const answer = await fetch(path, {
    method: options.method ?? "GET", headers, body: options.body, cache: "no-store", credentials: "omit",
    redirect: "error", referrerPolicy: "no-referrer", signal: options.ms ? AbortSignal.timeout(options.ms) : null,
  }).catch(() => {
    throw new Refused(0, { problem: "the console does not answer", remedy: "see whether headrace web is running" });
  });
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  // What no one's token is any more, such as after a restart with other ones, is not sent again.
  if (answer.status === UNAUTHORIZED && used && used === token) forget();
  throw new Refused(answer.status, body);
}

export const read = (path, ms = PATIENCE_MS) => request(path, { ms });

export const change = (path, body) =>
  request(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

export const session = () => read("/api/session");

export async function enter(given) {
  if (!/^[!-~]+$/.test(given)) {
    throw new Refused(UNAUTHORIZED, { problem: "this is not a token", remedy: "it has letters, digits and signs, without spaces" });
  }
  const found = await request("/api/session", { token: given, ms: PATIENCE_MS });
  token = given;
  operator = found.operator;
  return found;
}

export function forget() {
  token = null;
  operator = null;
}
